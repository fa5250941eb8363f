"""Blocking, confirmed, mandatory publishing.

A message counts as published when the broker has stored it in a queue and said so. One that no queue is bound for,
one that is refused and one that is not confirmed in time each raise an error of their own.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pika

from airflow_rabbitmq_spark.amqp.background import Background
from airflow_rabbitmq_spark.amqp.connection import Channel, Connection
from airflow_rabbitmq_spark.exceptions import RabbitMQSparkError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine, Iterable, Iterator
    from types import TracebackType

    from airflow_rabbitmq_spark.amqp.endpoint import Endpoint

#: How many messages may be under way unconfirmed. Measured: throughput over TLS grows by a tenth from 1,000 to 5,000, and by
#: little from there (benchmarks/publishing.py --windows).
WINDOW = 5_000
#: And how many bytes: what the socket has not taken yet is held in memory, and at an alarm that is all of it.
WINDOW_BYTES = 32 * 2**20
#: How many messages, and bytes, go to the publisher's thread at a time, and the seconds after which fewer go with the next.
CHUNK, CHUNK_BYTES, CHUNK_SECONDS = 1_000, WINDOW_BYTES // 2, 0.1


@dataclass
class Outgoing:
    """One message to publish."""

    body: bytes
    routing_key: str
    exchange: str = ""
    properties: pika.BasicProperties = field(default_factory=lambda: pika.BasicProperties(delivery_mode=2))


class Publisher:
    """A connection for publishing, opened on first use and answered for (heartbeats) by a thread of its own.

    Use it as a context manager, from any one thread::

        with Publisher(endpoint) as publisher:
            publisher.publish("orders", "orders.new", b"{}")

    :param endpoint: the broker.
    :param connection_name: shown in the broker's own list of connections.
    :param timeout: seconds to wait for a confirm; the endpoint's ``blocked_connection_timeout`` when not given.
    """

    def __init__(self, endpoint: Endpoint, *, connection_name: str | None = None, timeout: float | None = None) -> None:
        self._endpoint = endpoint
        self._connection_name = connection_name
        self._timeout = endpoint.blocked_connection_timeout if timeout is None else timeout
        self._background: Background | None = None
        self._connection: Connection | None = None
        self._channel: Channel | None = None

    def __enter__(self) -> Publisher:
        self.open()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self.close()

    def open(self) -> None:
        """Connect now rather than at the first message.

        :raises ConnectionFailed: the broker cannot be reached or refused us.
        """
        self.run(self._ready())

    def run(self, coroutine: Any) -> Any:
        """Run a coroutine on the publisher's thread and wait for it."""
        if self._background is None or not self._background.is_running:
            self._background = Background("rabbitmq-publisher")
        return self._background.call(coroutine)

    async def _ready(self) -> Channel:
        if self._connection is None or not self._connection.is_open:
            self._connection = await Connection.open(self._endpoint, connection_name=self._connection_name)
            self._channel = None
        if self._channel is None or not self._channel.is_open:
            self._channel = await self._connection.channel()
            await self._channel.confirm()
        return self._channel

    def publish(
        self,
        exchange: str,
        routing_key: str,
        body: bytes,
        properties: pika.BasicProperties | None = None,
        *,
        mandatory: bool = True,
    ) -> None:
        """Publish one message, persistent unless ``properties`` says otherwise, and wait for its confirm.

        :raises Unroutable: no queue is bound for it, and ``mandatory``.
        :raises Rejected: the broker refused it.
        :raises Unconfirmed: no confirm in time; it may or may not have been stored.
        :raises BrokerBlocked: no confirm in time, and the broker has a memory or disk alarm.
        :raises ConnectionFailed: the broker cannot be reached, refused us or went away.
        """

        async def send() -> None:
            channel = await self._ready()
            await channel.publish(
                exchange,
                routing_key,
                body,
                properties or pika.BasicProperties(delivery_mode=2),
                mandatory=mandatory,
                timeout=self._timeout,
            )

        self.run(send())

    def publish_many(
        self,
        messages: Iterable[Outgoing],
        *,
        mandatory: bool = True,
        on_progress: Callable[[int], None] | None = None,
    ) -> int:
        """Publish many messages with up to :data:`WINDOW` of them, or :data:`WINDOW_BYTES` and one message,
        unconfirmed at a time.

        The first message that fails stops the rest. Its error says how many were confirmed before.

        :param messages: taken one by one, on the calling thread, so that they need not all fit in memory. That may take
            as long as it likes, for heartbeats are answered meanwhile; but the last of those that came quickly go when
            the next comes.
        :param on_progress: called on the calling thread with the count confirmed so far, now and then.
        :return: how many were published, every one confirmed.
        :raises PublishFailed: as :meth:`publish`.
        :raises ConnectionFailed: as :meth:`publish`.
        """
        batch = _Batch(self, mandatory=mandatory)
        remaining, limit, told, ended = iter(messages), 1, 0, False
        try:
            while not ended:
                chunk: list[Outgoing] = []
                began = time.monotonic()
                try:
                    ended = _take(remaining, chunk, limit, until=began + CHUNK_SECONDS)
                except Exception:
                    # What the caller gave before is not held back.
                    batch.send(chunk)
                    raise
                # What comes slowly goes one by one.
                limit = min(2 * limit, CHUNK) if time.monotonic() - began < CHUNK_SECONDS else 1
                batch.send(chunk)
                if on_progress is not None and batch.confirmed - told >= CHUNK:
                    told = batch.confirmed
                    on_progress(told)
            batch.settle()
        finally:
            batch.forget()
        if on_progress is not None:
            on_progress(batch.confirmed)
        return batch.confirmed

    def close(self) -> None:
        """Close the connection and end the thread. May be called twice."""
        background, self._background = self._background, None
        connection, self._connection = self._connection, None
        if background is None:
            return
        if connection is not None and background.is_running:
            background.call(connection.close(), timeout=10)
        background.stop()


class _Batch:
    """Messages under way on a publisher's connection: sent in chunks, confirmed in their order.

    What it raises says how many were confirmed before.
    """

    def __init__(self, publisher: Publisher, *, mandatory: bool) -> None:
        self._publisher = publisher
        self._mandatory = mandatory
        self._channel: Channel | None = None
        self._under_way: deque[tuple[asyncio.Future[None], int]] = deque()
        self._size = 0
        self.confirmed = 0

    def send(self, chunk: list[Outgoing]) -> None:
        """Send a chunk, and wait until the window has room for another."""
        if chunk:
            self._run(self._send(chunk))

    def settle(self) -> None:
        """Wait for all that is under way."""
        self._run(self._settle(0, 0))

    def forget(self) -> None:
        """Wait for nothing any more."""
        if self._under_way:
            self._run(self._forget())

    def _run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        try:
            self._publisher.run(coroutine)
        except RabbitMQSparkError as error:
            raise type(error)(f"{error} ({self.confirmed} messages before it were confirmed.)") from error

    async def _send(self, chunk: list[Outgoing]) -> None:
        if self._channel is not None and not self._channel.is_open:
            # What was not confirmed has failed with it: that comes out here, and no new channel hides it.
            await self._settle(0, 0)
        if self._channel is None or not self._channel.is_open:
            self._channel = await self._publisher._ready()
        with self._channel.connection.held():
            for message in chunk:
                future = self._channel.send(
                    message.exchange,
                    message.routing_key,
                    message.body,
                    message.properties,
                    mandatory=self._mandatory,
                )
                self._under_way.append((future, len(message.body)))
                self._size += len(message.body)
        await self._settle(WINDOW - CHUNK, WINDOW_BYTES - CHUNK_BYTES)

    async def _settle(self, count: int, volume: int) -> None:
        """Wait until no more than that many messages, and bytes, are under way."""
        while self._channel is not None and self._under_way:
            first, size = self._under_way[0]
            if len(self._under_way) <= count and self._size <= volume and not first.done():
                return
            await self._channel.confirmed(first, timeout=self._publisher._timeout)
            self._under_way.popleft()
            self._size -= size
            self.confirmed += 1

    async def _forget(self) -> None:
        for future, _ in self._under_way:
            future.cancel()


def _take(remaining: Iterator[Outgoing], chunk: list[Outgoing], limit: int, *, until: float) -> bool:
    """Fill a chunk with ``limit`` messages, or a chunk's bytes, or what comes in time; whether that was all."""
    size = 0
    for message in remaining:
        chunk.append(message)
        size += len(message.body)
        if len(chunk) >= limit or size >= CHUNK_BYTES or time.monotonic() >= until:
            return False
    return True
