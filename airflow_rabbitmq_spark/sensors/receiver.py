"""Receiving one message in a worker: code that blocks, and holds the message until it is told to acknowledge."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from airflow_rabbitmq_spark.amqp.background import Background
from airflow_rabbitmq_spark.amqp.connection import Channel, Connection, Message
from airflow_rabbitmq_spark.amqp.multiplexer import shared
from airflow_rabbitmq_spark.triggers.rabbitmq import receive

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_rabbitmq_spark.amqp.endpoint import Endpoint
    from airflow_rabbitmq_spark.triggers.rabbitmq import Found, Wanted


class _Look:
    """What is in a queue now, message by message; the end is a time-out."""

    def __init__(self, channel: Channel, queue: str) -> None:
        self._channel, self._queue = channel, queue

    async def next(self, timeout: float | None = None) -> Message:  # noqa: ARG002 - it waits for nothing
        message = await self._channel.get(self._queue)
        if message is None:
            raise TimeoutError
        return message

    def reject(self, message: Message) -> None:
        self._channel.reject(message.tag, requeue=False)


class Receiver:
    """Connections on a thread of their own, where heartbeats are answered while the task computes."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._background = Background("rabbitmq-receiver")
        self._connection: Connection | None = None
        self._ack: Callable[[], None] | None = None

    def look(self, wanted: Wanted) -> Found | None:
        """The message, if it is in the queue already. It is held; what was passed over has gone back.

        :raises RabbitMQSparkError: the queue or the broker cannot be used.
        """

        async def work() -> Found | None:
            connection = self._connection = await Connection.open(self._endpoint)
            channel = await connection.channel()
            try:
                found = await wanted.find(_Look(channel, wanted.queue))
            except TimeoutError:
                await connection.close()
                return None
            self._ack = lambda: channel.ack(found.message.tag)
            return found

        return self._background.call(work())

    def wait(self, wanted: Wanted, *, end_by: float | None) -> Found:
        """Wait for the message, through reconnects. It is held.

        :param end_by: seconds since the epoch.
        :raises TimeoutError: it has not come.
        :raises RabbitMQSparkError: the queue or the broker cannot be used.
        """

        async def work() -> Found:
            subscription, found = await receive(shared(self._endpoint), wanted, end_by=end_by)
            self._ack = lambda: subscription.ack(found.message)
            return found

        return self._background.call(work())

    def acknowledge(self) -> None:
        """The message is done with."""

        async def work() -> None:
            if self._ack is not None:
                self._ack()

        self._background.call(work())
        self.close()

    def close(self) -> None:
        """Close what is open: a message that was not acknowledged goes back. May be called twice."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):
                self._background.call(connection.close(), timeout=10)
        self._background.stop()
