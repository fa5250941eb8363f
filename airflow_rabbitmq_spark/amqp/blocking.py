"""Everyday operations on queues and exchanges for code that blocks: declare, bind, inspect, purge, delete, get, consume.

Publishing is ``publisher.py``'s; waiting for many queues at once is ``multiplexer.py``'s.
"""

from __future__ import annotations

import contextlib
import queue as queues
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pika
from pika.exceptions import AMQPError

from airflow_rabbitmq_spark.amqp.background import Background
from airflow_rabbitmq_spark.amqp.connection import Channel, Connection, Message
from airflow_rabbitmq_spark.amqp.diagnosis import explain
from airflow_rabbitmq_spark.amqp.frames import TolerantBlockingImplementation
from airflow_rabbitmq_spark.exceptions import NotFound, RabbitMQSparkError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import TracebackType

    from pika.adapters.blocking_connection import BlockingChannel

    from airflow_rabbitmq_spark.amqp.endpoint import Endpoint

#: How many messages a consumer may hold ahead of the handler: enough to hide the way to the broker.
PREFETCH = 50


@dataclass(frozen=True)
class QueueState:
    """What a queue holds at one moment.

    :param messages: how many wait to be delivered (not those delivered and unacknowledged).
    :param consumers: how many consumers it has.
    """

    name: str
    messages: int
    consumers: int


def connect(endpoint: Endpoint, *, connection_name: str | None = None) -> pika.BlockingConnection:
    """A connection of pika's own to the first host that lets us in, tried as often as the endpoint says.

    Heartbeats are answered only while a call into it runs: do not compute for long between two calls.

    :raises ConnectionFailed: no host let us in; of several reasons the first that waiting does not cure.
    """
    pauses = endpoint.pauses()
    while True:
        failures: list[RabbitMQSparkError] = []
        for host, parameters in zip(endpoint.hosts, endpoint.parameters(connection_name=connection_name), strict=True):
            result = _attempt(replace(endpoint, hosts=(host,)), parameters)
            if isinstance(result, pika.BlockingConnection):
                return result
            failures.append(result)
        lasting = next((error for error in failures if not error.transient), None)
        pause = next(pauses, None)
        if lasting is not None or pause is None:
            raise lasting or failures[0]
        time.sleep(pause)


def _attempt(endpoint: Endpoint, parameters: pika.ConnectionParameters) -> pika.BlockingConnection | RabbitMQSparkError:
    try:
        return pika.BlockingConnection(parameters, _impl_class=TolerantBlockingImplementation)
    except Exception as error:  # noqa: BLE001 - whatever pika, ssl or the socket says: one table explains it
        return explain(error, endpoint)


class Operations:
    """Operations over one connection, opened at the first and again when it was lost. A context manager.

    :param connection_name: shown in the broker's list of connections.
    """

    def __init__(self, endpoint: Endpoint, *, connection_name: str | None = None) -> None:
        self._endpoint = endpoint
        self._connection_name = connection_name
        self._connection: pika.BlockingConnection | None = None

    def __enter__(self) -> Operations:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. May be called twice."""
        connection, self._connection = self._connection, None
        if connection is not None and connection.is_open:
            with contextlib.suppress(AMQPError, OSError):
                connection.close()

    @contextlib.contextmanager
    def _channel(self) -> Iterator[BlockingChannel]:
        """A channel for one operation: the broker closes it at an error, which then hurts no other."""
        connection = self._alive()
        try:
            channel = connection.channel()
            yield channel
            if channel.is_open:
                channel.close()
        except (AMQPError, OSError) as error:
            raise explain(error, self._endpoint) from error

    def _alive(self) -> pika.BlockingConnection:
        if self._connection is not None:
            # A connection that lay idle may be dead without having noticed: reading tells.
            with contextlib.suppress(AMQPError, OSError):
                self._connection.process_data_events(0)
            if self._connection.is_open:
                return self._connection
        self._connection = connect(self._endpoint, connection_name=self._connection_name)
        return self._connection

    def declare_exchange(
        self,
        name: str,
        kind: str = "topic",
        *,
        durable: bool = True,
        auto_delete: bool = False,
        internal: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """Declare an exchange; nothing happens when it exists just so.

        :raises TopologyConflict: it exists with other properties.
        :raises AccessRefused: the user may not.
        """
        with self._channel() as channel:
            channel.exchange_declare(
                name,
                kind,
                durable=durable,
                auto_delete=auto_delete,
                internal=internal,
                arguments=dict(arguments or {}),
            )

    def declare_queue(
        self,
        name: str,
        *,
        durable: bool = True,
        exclusive: bool = False,
        auto_delete: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> QueueState:
        """Declare a queue; nothing happens when it exists just so.

        :param name: empty for a name of the broker's choice, which is returned.
        :raises TopologyConflict: it exists with other properties, or belongs to another connection.
        :raises AccessRefused: the user may not.
        """
        with self._channel() as channel:
            return _state(
                channel.queue_declare(
                    name,
                    durable=durable,
                    exclusive=exclusive,
                    auto_delete=auto_delete,
                    arguments=dict(arguments or {}),
                )
            )

    def bind_queue(
        self, queue: str, exchange: str, routing_key: str = "", *, arguments: Mapping[str, Any] | None = None
    ) -> None:
        """Bind a queue to an exchange; nothing happens when it is.

        :raises NotFound: there is no such queue or exchange.
        """
        with self._channel() as channel:
            channel.queue_bind(queue, exchange, routing_key, arguments=dict(arguments or {}))

    def unbind_queue(
        self, queue: str, exchange: str, routing_key: str = "", *, arguments: Mapping[str, Any] | None = None
    ) -> None:
        """Undo :meth:`bind_queue`; nothing happens when it is not bound."""
        with self._channel() as channel:
            channel.queue_unbind(queue, exchange, routing_key, arguments=dict(arguments or {}))

    def bind_exchange(
        self, destination: str, source: str, routing_key: str = "", *, arguments: Mapping[str, Any] | None = None
    ) -> None:
        """Let an exchange get what another one gets."""
        with self._channel() as channel:
            channel.exchange_bind(destination, source, routing_key, arguments=dict(arguments or {}))

    def inspect_queue(self, name: str) -> QueueState | None:
        """How many messages and consumers a queue has; ``None`` when there is no such queue."""
        try:
            with self._channel() as channel:
                return _state(channel.queue_declare(name, passive=True))
        except NotFound:
            return None

    def exchange_exists(self, name: str) -> bool:
        """Whether there is such an exchange."""
        try:
            with self._channel() as channel:
                channel.exchange_declare(name, passive=True)
        except NotFound:
            return False
        return True

    def purge_queue(self, name: str) -> int:
        """Throw away the messages that wait in a queue.

        :return: how many.
        :raises NotFound: there is no such queue.
        """
        with self._channel() as channel:
            return int(channel.queue_purge(name).method.message_count)

    def delete_queue(self, name: str, *, if_unused: bool = False, if_empty: bool = False) -> int:
        """Delete a queue; it is no error that there is none.

        :return: how many messages went with it.
        :raises TopologyConflict: it is used or not empty, against ``if_unused`` or ``if_empty``.
        """
        with self._channel() as channel:
            return int(channel.queue_delete(name, if_unused=if_unused, if_empty=if_empty).method.message_count)

    def delete_exchange(self, name: str, *, if_unused: bool = False) -> None:
        """Delete an exchange; it is no error that there is none.

        :raises TopologyConflict: something is bound to it, against ``if_unused``.
        """
        with self._channel() as channel:
            channel.exchange_delete(name, if_unused=if_unused)

    def get(self, queue: str) -> Message | None:
        """Take one message out of a queue, at most once: it is acknowledged before this returns.

        :return: the message, or ``None`` when the queue is empty.
        :raises NotFound: there is no such queue.
        """
        with self._channel() as channel:
            method, properties, body = channel.basic_get(queue, auto_ack=False)
            if method is None or properties is None:
                return None
            channel.basic_ack(method.delivery_tag)
            return Message(
                body=body or b"",
                properties=properties,
                exchange=method.exchange,
                routing_key=method.routing_key,
                redelivered=method.redelivered,
                tag=method.delivery_tag,
            )


def consume(
    endpoint: Endpoint,
    queue: str,
    handler: Callable[[Message], None],
    *,
    max_messages: int | None = None,
    idle_timeout: float | None = None,
    prefetch: int = PREFETCH,
    connection_name: str | None = None,
) -> int:
    """Hand the messages of a queue to ``handler``, one at a time, each acknowledged when it returns: at least once.

    When ``handler`` raises, its message and those fetched ahead go back to the queue and the error comes out of here.
    The handler runs on the caller's thread and may take its time: heartbeats are answered on another.

    :param max_messages: stop after so many; ``None`` for no limit.
    :param idle_timeout: stop after so many seconds without a message; ``None`` to wait for ever.
    :param prefetch: how many messages may be fetched ahead.
    :return: how many were handled and acknowledged.
    :raises NotFound: there is no such queue, or it was deleted meanwhile.
    :raises ConnectionLost: the connection went away; what was unacknowledged is in the queue again.
    """
    arrived: queues.SimpleQueue[Message | RabbitMQSparkError] = queues.SimpleQueue()
    background = Background("rabbitmq-consumer")

    async def start(connection: Connection) -> Channel:
        channel = await connection.channel()
        channel.closed.add_done_callback(lambda future: None if future.cancelled() else arrived.put(future.result()))
        await channel.prefetch(prefetch if max_messages is None else min(prefetch, max(1, max_messages)))
        gone = NotFound(f"Queue {queue!r} was deleted, or its node went down, at {endpoint.describe()}.")
        await channel.consume(queue, arrived.put, on_cancelled=lambda _tag: arrived.put(gone))
        return channel

    async def acknowledge(channel: Channel, tag: int) -> None:
        if not channel.is_open:
            raise channel.closed.result()
        channel.ack(tag)

    handled = 0
    try:
        connection = background.call(Connection.open(endpoint, connection_name=connection_name))
        try:
            channel = background.call(start(connection))
            while max_messages is None or handled < max_messages:
                try:
                    message = arrived.get(timeout=idle_timeout)
                except queues.Empty:
                    break
                if isinstance(message, RabbitMQSparkError):
                    raise message
                handler(message)
                background.call(acknowledge(channel, message.tag))
                handled += 1
        finally:
            # What was fetched ahead, or failed, goes back to the queue with this.
            background.call(connection.close())
    finally:
        background.stop()
    return handled


def _state(frame: Any) -> QueueState:
    method = frame.method
    return QueueState(method.queue, method.message_count, method.consumer_count)
