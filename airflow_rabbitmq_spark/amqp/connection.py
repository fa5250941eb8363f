"""A RabbitMQ connection to ``await``: pika's asyncio adapter with coroutines where it has callbacks.

Everything in this package that speaks AMQP speaks it through here: the triggerer's multiplexer on the triggerer's
event loop, the driver's session and the blocking publisher on a thread of their own (``amqp.background``).

Errors are those of ``airflow_rabbitmq_spark.exceptions``; nothing of pika's escapes.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pika
from pika import spec

from airflow_rabbitmq_spark.amqp.diagnosis import explain
from airflow_rabbitmq_spark.amqp.frames import BoundedAssembler
from airflow_rabbitmq_spark.amqp.writing import JoiningConnection
from airflow_rabbitmq_spark.exceptions import (
    BrokerBlocked,
    ConnectionLost,
    NotFound,
    RabbitMQSparkError,
    Rejected,
    Unconfirmed,
    Unroutable,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    from pika.channel import Channel as PikaChannel

    from airflow_rabbitmq_spark.amqp.endpoint import Endpoint

log = logging.getLogger(__name__)

#: pika reports every refused connection at ERROR with a traceback of its own; ours say it once, and better.
logging.getLogger("pika").setLevel(logging.CRITICAL)

#: Seconds to wait for the broker's goodbye before the socket is dropped: it only matters to the broker's log.
CLOSE_TIMEOUT = 5.0


@dataclass(frozen=True, slots=True)
class Message:
    """A message as it was delivered. ``tag`` is only good on the channel that delivered it."""

    body: bytes
    properties: pika.BasicProperties
    exchange: str
    routing_key: str
    redelivered: bool
    tag: int
    consumer_tag: str = ""

    @property
    def headers(self) -> Mapping[str, Any]:
        """The message's headers; empty when there are none."""
        return self.properties.headers or {}

    @property
    def problem(self) -> str | None:
        """Why the message could not be read: then its body, or its properties and headers, are empty. Mostly None."""
        return getattr(self.properties, "problem", None)


class Connection:
    """One open connection. Make it with :meth:`open`; :attr:`closed` completes when it is gone.

    Not thread-safe: use it on the event loop that opened it.
    """

    def __init__(self, endpoint: Endpoint, host: tuple[str, int]) -> None:
        self.endpoint = endpoint
        self.host = host
        #: Completes with the reason when the connection is gone, whoever ended it.
        self.closed: asyncio.Future[RabbitMQSparkError] = asyncio.get_running_loop().create_future()
        #: True while the broker blocks publishers because of a memory or disk alarm.
        self.blocked = False
        self._pika: JoiningConnection | None = None
        self._channels: set[Channel] = set()

    @classmethod
    async def open(
        cls,
        endpoint: Endpoint,
        *,
        connection_name: str | None = None,
        blocked_connection_timeout: float | None = None,
    ) -> Connection:
        """Connect to the first host of ``endpoint`` that answers.

        :param connection_name: shown in the broker's own list of connections.
        :param blocked_connection_timeout: seconds; replaces the endpoint's.
        :raises ConnectionFailed: the most telling failure: one that waiting does not cure comes before one that it
            may cure, and the first host's before the others'.
        """
        failures: list[RabbitMQSparkError] = []
        for parameters in endpoint.parameters(connection_name=connection_name):
            if blocked_connection_timeout is not None:
                parameters.blocked_connection_timeout = blocked_connection_timeout
            connection = cls(endpoint, (parameters.host, parameters.port))
            try:
                await connection._open(parameters)
            except RabbitMQSparkError as error:
                log.debug("%s:%s: %s", parameters.host, parameters.port, error)
                failures.append(error)
            else:
                return connection
        raise next((error for error in failures if not error.transient), failures[0])

    async def _open(self, parameters: pika.ConnectionParameters) -> None:
        loop = asyncio.get_running_loop()
        opened: asyncio.Future[None] = loop.create_future()
        ended: asyncio.Future[Any] = loop.create_future()

        def on_open(_connection: object) -> None:
            if not opened.done():
                opened.set_result(None)

        def on_error(_connection: object, error: BaseException | str) -> None:
            if not opened.done():
                opened.set_exception(error if isinstance(error, BaseException) else ConnectionError(error))
            if not ended.done():
                ended.set_result(None)

        connection = JoiningConnection(
            parameters,
            on_open_callback=on_open,
            on_open_error_callback=on_error,
            on_close_callback=self._on_closed,
            custom_ioloop=loop,
        )
        try:
            await opened
        except asyncio.CancelledError:
            # It may have been opened in this very moment.
            if connection.is_open:
                connection._terminate_stream(ConnectionAbortedError("nobody waits for it any more"))
            elif not connection.is_closed and not connection.is_closing:
                connection.close()
            await asyncio.wait([ended, self.closed], timeout=CLOSE_TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
            await _let_go()
            raise
        except Exception as error:  # whatever pika, ssl or the socket says: one table explains it
            # To explain may take a look at the port, which blocks.
            raise await loop.run_in_executor(None, self._explain, error) from error
        connection.add_on_connection_blocked_callback(lambda *_: self._on_blocked(blocked=True))
        connection.add_on_connection_unblocked_callback(lambda *_: self._on_blocked(blocked=False))
        self._pika = connection

    @property
    def is_open(self) -> bool:
        """Whether the connection can be used."""
        return self._pika is not None and self._pika.is_open

    @property
    def server_properties(self) -> Mapping[str, Any]:
        """What the broker says of itself: product, version, cluster name."""
        properties: Mapping[str, Any] = getattr(self._pika, "server_properties", None) or {}
        return properties

    @property
    def server_version(self) -> tuple[int, ...]:
        """The broker's version, such as ``(4, 0, 5)``; ``(0,)`` when it does not say."""
        version = self.server_properties.get("version", b"")
        text = version.decode("ascii", "replace") if isinstance(version, bytes) else str(version)
        numbers = [int(part) for part in text.split("-")[0].split("+")[0].split(".") if part.isdigit()]
        return tuple(numbers) or (0,)

    async def channel(self) -> Channel:
        """Open a channel.

        :raises ConnectionLost: the connection is gone.
        """
        if self._pika is None or not self._pika.is_open:
            raise self._gone()
        opened: asyncio.Future[PikaChannel] = asyncio.get_running_loop().create_future()
        channel = Channel(self)
        self._channels.add(channel)
        channel._pending.add(opened)

        def on_open(raw: PikaChannel) -> None:
            if opened.done():
                raw.close()  # who asked for it was cancelled meanwhile
            else:
                opened.set_result(raw)

        self._pika.channel(on_open_callback=on_open)
        try:
            channel._adopt(await opened)
        except BaseException:
            self._channels.discard(channel)
            raise
        finally:
            channel._pending.discard(opened)
        return channel

    def held(self) -> AbstractContextManager[None]:
        """Let what is sent in a ``with`` block go together (``amqp/writing.py``). Nothing may be awaited in it.

        :raises ConnectionLost: the connection is gone.
        """
        if self._pika is None or not self._pika.is_open:
            raise self._gone()
        return self._pika.held()

    async def close(self) -> None:
        """Say goodbye and wait for the broker's, for :data:`CLOSE_TIMEOUT` at the most. Never raises."""
        if self._pika is None or self.closed.done():
            return
        if not self._pika.is_closing and not self._pika.is_closed:
            self._pika.close()
        done, _ = await asyncio.wait([self.closed], timeout=CLOSE_TIMEOUT)
        if not done:
            self.abort("the broker did not answer the goodbye")
            await _let_go()

    def abort(self, reason: str) -> None:
        """Drop the socket without a goodbye."""
        if self._pika is not None and not self.closed.done():
            self._pika._terminate_stream(ConnectionAbortedError(reason))

    def _gone(self) -> RabbitMQSparkError:
        if self.closed.done():
            return self.closed.result()
        return ConnectionLost(f"The connection to {self.endpoint.describe()} is not open.")

    def _on_blocked(self, *, blocked: bool) -> None:
        self.blocked = blocked
        if blocked:
            log.warning("%s blocks publishers: memory or disk alarm.", self.endpoint.describe())
        else:
            log.info("%s takes messages again.", self.endpoint.describe())

    def _explain(self, error: BaseException) -> RabbitMQSparkError:
        return explain(error, self.endpoint, host=self.host)

    def _on_closed(self, _connection: object, error: BaseException) -> None:
        reason = self._explain(error)
        if not self.closed.done():
            self.closed.set_result(reason)
        for channel in list(self._channels):
            channel._on_closed(None, error)
        self._channels.clear()


async def _let_go() -> None:
    """Let the event loop close the socket of an aborted connection; a loop that ends before leaves it open."""
    for _ in range(3):
        await asyncio.sleep(0)


class Channel:
    """A channel of a :class:`Connection`; an error of the broker's closes it and fails all that was under way."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        #: Completes with the reason when the channel is gone.
        self.closed: asyncio.Future[RabbitMQSparkError] = asyncio.get_running_loop().create_future()
        self._raw: PikaChannel | None = None
        self._pending: set[asyncio.Future[Any]] = set()
        self._confirming = False
        self._id_prefix, self._id_numbers = uuid.uuid4().hex, itertools.count(1)
        self._published = 0
        self._unconfirmed: dict[int, tuple[asyncio.Future[None], str | None]] = {}
        self._lowest_unconfirmed = 1
        self._by_message_id: dict[str, int] = {}
        self._on_message: dict[str, Callable[[Message], None]] = {}
        self._on_cancelled: dict[str, Callable[[str], None]] = {}
        # Made once, not for each consumer.
        self._receive = self._on_delivery

    @property
    def is_open(self) -> bool:
        """Whether the channel can be used."""
        return self._raw is not None and self._raw.is_open and not self.closed.done()

    def _adopt(self, raw: PikaChannel) -> None:
        self._raw = raw
        raw._content_assembler = BoundedAssembler(self.connection.endpoint.max_message_bytes)
        raw.add_on_close_callback(self._on_closed)
        raw.add_on_cancel_callback(self._on_consumer_cancelled)

    def _open_raw(self) -> PikaChannel:
        if self._raw is None or not self.is_open:
            raise self.closed.result() if self.closed.done() else self.connection._gone()
        return self._raw

    async def _call(self, start: Callable[[Callable[[Any], None]], object]) -> Any:
        """Run one of pika's methods that take a callback, and wait for what it is called with."""
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._pending.add(answer)
        try:
            start(lambda frame: None if answer.done() else answer.set_result(frame))
            return await answer
        finally:
            self._pending.discard(answer)

    def _on_closed(self, _raw: object, error: BaseException) -> None:
        if self.closed.done():
            return
        reason = self.connection._explain(error)
        self.closed.set_result(reason)
        for future in [*self._pending, *(future for future, _ in self._unconfirmed.values())]:
            if not future.done():
                future.set_exception(reason)
        self._pending.clear()
        self._unconfirmed.clear()
        self._by_message_id.clear()
        self.connection._channels.discard(self)

    # Topology -------------------------------------------------------------------------------------------------------

    async def declare_exchange(self, name: str, kind: str = "topic", *, passive: bool = False) -> None:
        """Declare a durable exchange, or with ``passive`` only check that it exists."""
        raw = self._open_raw()
        await self._call(lambda done: raw.exchange_declare(name, kind, durable=True, passive=passive, callback=done))

    async def declare_queue(
        self,
        name: str,
        *,
        arguments: Mapping[str, Any] | None = None,
        exclusive: bool = False,
        passive: bool = False,
    ) -> tuple[int, int]:
        """Declare a durable (or exclusive) queue, or with ``passive`` only look at it.

        :return: how many messages wait in it, and how many consumers it has.
        :raises NotFound: ``passive`` and there is none.
        :raises TopologyConflict: it exists with other arguments, or belongs to another connection.
        """
        raw = self._open_raw()
        frame = await self._call(
            lambda done: raw.queue_declare(
                name,
                passive=passive,
                durable=not exclusive,
                exclusive=exclusive,
                arguments=dict(arguments or {}),
                callback=done,
            )
        )
        return frame.method.message_count, frame.method.consumer_count

    async def bind_queue(self, queue: str, exchange: str, routing_key: str) -> None:
        """Bind a queue to an exchange."""
        raw = self._open_raw()
        await self._call(lambda done: raw.queue_bind(queue, exchange, routing_key, callback=done))

    async def delete_queue(self, name: str, *, if_unused: bool = False) -> None:
        """Delete a queue; it is no error that there is none.

        :raises TopologyConflict: ``if_unused`` and it has a consumer, or it belongs to another connection.
        """
        raw = self._open_raw()
        await self._call(lambda done: raw.queue_delete(name, if_unused=if_unused, callback=done))

    # Consuming ------------------------------------------------------------------------------------------------------

    async def prefetch(self, count: int) -> None:
        """Let each consumer that starts from now on hold ``count`` messages unacknowledged; 0 is no limit."""
        raw = self._open_raw()
        await self._call(lambda done: raw.basic_qos(prefetch_count=count, callback=done))

    async def consume(
        self,
        queue: str,
        on_message: Callable[[Message], None],
        *,
        exclusive: bool = False,
        on_cancelled: Callable[[str], None] | None = None,
        consumer_tag: str | None = None,
    ) -> str:
        """Start a consumer; messages must be acknowledged.

        :param on_message: called on the event loop with each message. It must not block or raise.
        :param on_cancelled: called with the consumer tag when the broker ends the consumer: its queue was deleted, or is
            on a node that went down.
        :return: the consumer tag.
        :raises NotFound: there is no such queue.
        :raises AccessRefused: the queue has an exclusive consumer already.
        """
        raw = self._open_raw()
        tag = consumer_tag or f"ctag-{uuid.uuid4().hex}"
        self._on_message[tag] = on_message
        if on_cancelled is not None:
            self._on_cancelled[tag] = on_cancelled
        try:
            await self._call(
                lambda done: raw.basic_consume(
                    queue, self._receive, exclusive=exclusive, consumer_tag=tag, callback=done
                )
            )
        except BaseException:
            self._on_message.pop(tag, None)
            self._on_cancelled.pop(tag, None)
            raise
        return tag

    def _on_delivery(self, _raw: object, method: Any, properties: pika.BasicProperties, body: bytes) -> None:
        on_message = self._on_message.get(method.consumer_tag)
        if on_message is None:
            # It was on its way when the consumer was ended.
            self.reject(method.delivery_tag, requeue=True)
            return
        on_message(
            Message(
                body=body,
                properties=properties,
                exchange=method.exchange,
                routing_key=method.routing_key,
                redelivered=method.redelivered,
                tag=method.delivery_tag,
                consumer_tag=method.consumer_tag,
            )
        )

    async def cancel(self, consumer_tag: str) -> None:
        """End a consumer. What it holds unacknowledged stays held until the channel closes or it is let go."""
        self._on_message.pop(consumer_tag, None)
        self._on_cancelled.pop(consumer_tag, None)
        raw = self._open_raw()

        def start(done: Callable[[Any], None]) -> None:
            # Not by pika's basic_cancel: it holds a method back while another of the channel is not answered, and takes
            # the answer to one cancel for that to all. What is given back after this must reach the broker after it.
            raw.callbacks.add(raw.channel_number, spec.Basic.CancelOk, done, arguments={"consumer_tag": consumer_tag})
            raw._send_method(spec.Basic.Cancel(consumer_tag=consumer_tag))

        await self._call(start)
        raw._consumers.pop(consumer_tag, None)

    async def get(self, queue: str) -> Message | None:
        """Take one message, to be acknowledged, or None when the queue is empty.

        :raises NotFound: there is no such queue.
        """
        raw = self._open_raw()

        empty: Callable[[Any], None] | None = None

        def start(done: Callable[[Any], None]) -> None:
            nonlocal empty

            def empty(_frame: Any) -> None:
                done(None)

            raw.add_callback(empty, [spec.Basic.GetEmpty])
            raw.basic_get(queue, lambda _raw, *delivery: done(delivery))

        delivery = await self._call(start)
        if delivery is None:
            return None
        # pika leaves the callback for the empty answer behind when the answer was not empty.
        raw.callbacks.remove(raw.channel_number, spec.Basic.GetEmpty, empty)
        method, properties, body = delivery
        return Message(body, properties, method.exchange, method.routing_key, method.redelivered, method.delivery_tag)

    def ack(self, tag: int) -> None:
        """Acknowledge a message. Nothing happens when the channel is gone: the broker has requeued it then."""
        if self._raw is not None and self.is_open:
            self._raw.basic_ack(tag)

    def reject(self, tag: int, *, requeue: bool) -> None:
        """Give a message back, to the queue or to where the queue dead-letters."""
        if self._raw is not None and self.is_open:
            self._raw.basic_nack(tag, requeue=requeue)

    # Publishing -----------------------------------------------------------------------------------------------------

    async def confirm(self) -> None:
        """Ask the broker to confirm what is published on this channel from now on."""
        raw = self._open_raw()
        await self._call(lambda done: raw.confirm_delivery(self._on_confirm, callback=done))
        raw.add_on_return_callback(self._on_returned)
        self._confirming = True

    def send(
        self,
        exchange: str,
        routing_key: str,
        body: bytes,
        properties: pika.BasicProperties,
        *,
        mandatory: bool = True,
    ) -> asyncio.Future[None]:
        """Publish without waiting; the future completes when the broker has taken the message.

        A ``message_id`` is given to a message that has none: that is how a returned message is told from the others. It
        is written into ``properties``, so that each message needs its own.

        The future raises :class:`Unroutable`, :class:`Rejected`, or what closed the channel. On a channel without
        :meth:`confirm` it is complete at once.
        """
        raw = self._open_raw()
        if properties.message_id is None:
            # A UUID for each would take some microseconds, of about 20 that a message of a batch takes.
            properties.message_id = f"{self._id_prefix}.{next(self._id_numbers)}"
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        raw.basic_publish(exchange, routing_key, body, properties, mandatory=mandatory)
        if not self._confirming:
            future.set_result(None)
            return future
        self._published += 1
        self._unconfirmed[self._published] = future, properties.message_id if mandatory else None
        if mandatory:
            self._by_message_id[properties.message_id] = self._published
        return future

    async def publish(
        self,
        exchange: str,
        routing_key: str,
        body: bytes,
        properties: pika.BasicProperties,
        *,
        mandatory: bool = True,
        timeout: float = 30.0,
    ) -> None:
        """Publish, and wait ``timeout`` seconds at the most until the broker has taken the message.

        :raises Unroutable: no queue was bound for it, and ``mandatory``.
        :raises Rejected: the broker refused it.
        :raises Unconfirmed: no answer in time.
        :raises BrokerBlocked: no answer in time, and the broker blocks publishers.
        """
        await self.confirmed(self.send(exchange, routing_key, body, properties, mandatory=mandatory), timeout=timeout)

    async def confirmed(self, future: asyncio.Future[None], *, timeout: float) -> None:
        """Wait for a future of :meth:`send`, and give a time-out its reason."""
        if not future.done():  # of a batch most are, and waiting costs a round of the event loop even so
            await asyncio.wait([future], timeout=timeout)
        if not future.done():
            future.cancel()
            where = self.connection.endpoint.describe()
            if self.connection.blocked:
                message = (
                    f"{where} blocks publishers (memory or disk alarm) and has not taken the message in {timeout:g} s. "
                    "Free memory or disk on the broker, or raise its watermark."
                )
                raise BrokerBlocked(message)
            message = f"{where} has not confirmed the message in {timeout:g} s. It may or may not have been stored."
            raise Unconfirmed(message)
        future.result()

    def _on_confirm(self, frame: Any) -> None:
        method = frame.method
        numbers: list[int]
        if method.multiple:
            numbers = list(range(self._lowest_unconfirmed, method.delivery_tag + 1))
            self._lowest_unconfirmed = method.delivery_tag + 1
        else:
            numbers = [method.delivery_tag]
        for number in numbers:
            future, message_id = self._unconfirmed.pop(number, (None, None))
            if message_id is not None and self._by_message_id.get(message_id) == number:
                del self._by_message_id[message_id]
            if future is None or future.done():
                continue
            if isinstance(method, spec.Basic.Ack):
                future.set_result(None)
            else:
                future.set_exception(
                    Rejected(
                        f"{self.connection.endpoint.describe()} refused the message: a queue is full, or its node is down."
                    )
                )

    def _on_returned(self, _raw: object, method: Any, properties: pika.BasicProperties, _body: bytes) -> None:
        # The return comes before the confirm of the same message.
        number = self._by_message_id.get(properties.message_id or "")
        future, _ = self._unconfirmed.get(number or 0, (None, None))
        if future is not None and not future.done():
            exchange = method.exchange or "(default)"
            future.set_exception(
                Unroutable(
                    f"No queue is bound to exchange {exchange!r} for routing key {method.routing_key!r} "
                    f"({method.reply_text}): the message was not stored. Declare and bind the queue first."
                )
            )

    def _on_consumer_cancelled(self, frame: Any) -> None:
        tag = frame.method.consumer_tag
        self._on_message.pop(tag, None)
        callback = self._on_cancelled.pop(tag, None)
        if callback is not None:
            callback(tag)

    async def close(self) -> None:
        """Close the channel: what it holds unacknowledged goes back to its queue. Never raises."""
        if self._raw is None or not self._raw.is_open:
            return
        self._raw.close()
        await asyncio.wait([self.closed], timeout=CLOSE_TIMEOUT)


__all__ = ["Channel", "Connection", "ConnectionLost", "Message", "NotFound"]
