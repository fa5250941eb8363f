"""Any number of consumers on one connection: what lets a triggerer wait for ten thousand jobs at the cost of one.

There is one multiplexer for each endpoint and event loop (:func:`shared`). It only consumes: a broker that blocks
publishers does not block it. It connects at the first subscription, reconnects by itself and consumes everything
again, and closes when nobody has subscribed for a while.

Delivery is at least once. Who subscribes acknowledges; what it has not acknowledged goes back to the queue when the
subscription closes or the connection is lost, and comes again.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import random
import time
import weakref
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from airflow_rabbitmq_spark.amqp.connection import Channel, Connection, Message
from airflow_rabbitmq_spark.exceptions import AccessRefused, NotFound, RabbitMQSparkError, TopologyConflict

if TYPE_CHECKING:
    from collections.abc import Hashable
    from types import TracebackType

    from airflow_rabbitmq_spark.amqp.endpoint import Endpoint

log = logging.getLogger(__name__)

#: Messages that one subscription may hold unacknowledged. Enough to hide the way to the broker, and few enough that
#: ten thousand slow readers do not fill the triggerer's memory.
PREFETCH = 16
#: Seconds between attempts to reconnect, growing from the first to the second, with jitter so that the triggerers of
#: a deployment do not come back to a restarted broker all at once.
RETRY_DELAY = (0.5, 10.0)
#: Seconds for which an error that waiting does not cure (a refused password, say) is still tried again once a
#: connection has been open: a broker that is starting refuses what it accepts a moment later.
STUBBORN = 120.0
#: Seconds without a subscription after which the connection is closed.
LINGER = 10.0
#: Seconds between two log lines about the same trouble.
LOG_INTERVAL = 60.0

_shared: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Hashable, Multiplexer]] = weakref.WeakKeyDictionary()


def shared(endpoint: Endpoint) -> Multiplexer:
    """The multiplexer of ``endpoint`` on the running event loop, made at the first call."""
    by_endpoint = _shared.setdefault(asyncio.get_running_loop(), {})
    multiplexer = by_endpoint.get(endpoint.key())
    if multiplexer is None:
        multiplexer = by_endpoint[endpoint.key()] = Multiplexer(endpoint)
    return multiplexer


def _key(message: Message) -> tuple[str, int]:
    return message.consumer_tag, message.tag


class Subscription:
    """One queue's messages, as they come. An asynchronous context manager and iterator."""

    def __init__(self, multiplexer: Multiplexer, queue: str, prefetch: int = PREFETCH) -> None:
        self.queue = queue
        self.prefetch = prefetch
        #: Set when no more is wanted: a reconnect must not start it again, and what still arrives goes back.
        self.satisfied = False
        self._multiplexer = multiplexer
        self._messages: deque[tuple[Channel, Message]] = deque()
        #: By consumer and delivery tag: after a reconnect the tags begin anew, and an old one must not settle another message.
        self._held: dict[tuple[str, int], Channel] = {}
        self._waiter: asyncio.Future[None] | None = None
        self._error: RabbitMQSparkError | None = None
        #: The channel and tag of the consumer while there is one.
        self.consumer: tuple[Channel, str] | None = None

    async def __aenter__(self) -> Subscription:
        self._multiplexer._add(self)
        return self

    async def __aexit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        await self._multiplexer._remove(self)

    async def next(self) -> Message:
        """The next message. It must be given to :meth:`ack`, :meth:`reject` or :meth:`give_back`, or is held.

        :raises NotFound: the queue does not exist, or was deleted.
        :raises RabbitMQSparkError: the broker cannot be used, and waiting will not help.
        """
        while True:
            if (message := self.take()) is not None:
                return message
            if self._error is not None:
                raise self._error
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

    def take(self) -> Message | None:
        """The next message if it has arrived already; as of :meth:`next`."""
        while self._messages:
            channel, message = self._messages.popleft()
            # What an ended channel delivered has gone back to the queue already.
            if channel.is_open:
                self._held[_key(message)] = channel
                return message
        return None

    def ack(self, message: Message) -> None:
        """The message is done with. Nothing happens if its connection is gone: then it comes again."""
        if (channel := self._held.pop(_key(message), None)) is not None:
            channel.ack(message.tag)

    def reject(self, message: Message) -> None:
        """Nobody can use the message: to where the queue dead-letters."""
        if (channel := self._held.pop(_key(message), None)) is not None:
            channel.reject(message.tag, requeue=False)

    def give_back(self, *, but: Message | None = None) -> None:
        """Everything held goes back to the queue, as :meth:`__aexit__` does too.

        :param but: a message that stays held.
        """
        kept = {} if but is None else {key: channel for key, channel in self._held.items() if key == _key(but)}
        for key, channel in self._held.items():
            if key not in kept:
                channel.reject(key[1], requeue=True)
        for channel, message in self._messages:
            channel.reject(message.tag, requeue=True)
        self._held = kept
        self._messages.clear()

    async def keep_only(self, message: Message) -> None:
        """No more messages are wanted. ``message`` stays held; all others go back to the queue now."""
        await self._multiplexer._end_consumer(self, but=message)

    def holds(self, message: Message) -> bool:
        """Whether the right to acknowledge ``message`` is still ours: not if the connection was lost since."""
        channel = self._held.get(_key(message))
        return channel is not None and channel.is_open

    # Called by the multiplexer ---------------------------------------------------------------------------------------

    def deliver(self, channel: Channel, message: Message) -> None:
        """Take a message in."""
        if self.satisfied:
            # It was on its way when the consumer was ended.
            channel.reject(message.tag, requeue=True)
            return
        self._messages.append((channel, message))
        self._wake()

    def interrupted(self) -> None:
        """The connection is gone: so is the right to acknowledge anything."""
        self.consumer = None
        self._held.clear()
        self._messages.clear()

    def fail(self, error: RabbitMQSparkError) -> None:
        """End the waiting with an error."""
        self._error = error
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Multiplexer:
    """One connection, any number of subscriptions. Get it from :func:`shared`."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._subscriptions: set[Subscription] = set()
        #: Subscriptions that are to be given a consumer.
        self._wanted: asyncio.Queue[Subscription] = asyncio.Queue()
        self._empty = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._connection: Connection | None = None
        self._logged: dict[type, float] = {}
        #: How many times a connection was opened; for tests and benchmarks.
        self.connections_opened = 0

    def subscribe(self, queue: str, *, prefetch: int = PREFETCH) -> Subscription:
        """A subscription to ``queue``; consuming starts when it is entered (``async with``).

        :param prefetch: how many messages it may hold unacknowledged; 1 leaves all others to other consumers.
        """
        return Subscription(self, queue, prefetch)

    async def inspect(self, queue: str) -> tuple[int, int] | None:
        """How many messages wait in a queue and how many consumers it has, or None without a connection to ask.

        Messages that a consumer holds unacknowledged are not counted: AMQP does not tell of them.

        :raises NotFound: there is no such queue.
        """
        if self._connection is None or not self._connection.is_open:
            return None
        try:
            channel = await self._connection.channel()
            counts = await channel.declare_queue(queue, passive=True)
            await channel.close()
        except NotFound:
            raise
        except RabbitMQSparkError:
            return None
        return counts

    def _add(self, subscription: Subscription) -> None:
        self._subscriptions.add(subscription)
        self._wanted.put_nowait(subscription)
        if self._task is None or self._task.done():
            # In an empty context: the task outlives the trigger that happens to start it, and must not log as it.
            self._task = contextvars.Context().run(asyncio.get_running_loop().create_task, self._run())

    async def _remove(self, subscription: Subscription) -> None:
        self._discard(subscription)
        await self._end_consumer(subscription)

    async def _end_consumer(self, subscription: Subscription, *, but: Message | None = None) -> None:
        """End a subscription's consumer, if it has one, and give back what it holds."""
        subscription.satisfied = True
        consumer, subscription.consumer = subscription.consumer, None
        if consumer is None:
            subscription.give_back(but=but)
            return
        channel, tag = consumer
        # First no more deliveries, then all goes back: the other way round some would come again at once. Both are sent
        # before either is answered, so that no reader sees a queue that has neither this consumer nor what it held.
        cancelling = asyncio.ensure_future(channel.cancel(tag))
        try:
            await asyncio.sleep(0)
        finally:
            subscription.give_back(but=but)
        try:
            await asyncio.shield(cancelling)
        except RabbitMQSparkError:
            log.debug("The connection ended while a consumer was ended; the broker has all back.")

    def _discard(self, subscription: Subscription) -> None:
        self._subscriptions.discard(subscription)
        if not self._subscriptions:
            self._empty.set()

    def _drop(self, subscription: Subscription, error: RabbitMQSparkError) -> None:
        """End one subscription with an error; the others do not notice."""
        self._discard(subscription)
        subscription.consumer = None
        subscription.fail(error)

    async def _run(self) -> None:
        """Stay connected for as long as anybody is subscribed."""
        delay = RETRY_DELAY[0]
        broken_since: float | None = None
        while self._subscriptions:
            connection: Connection | None = None
            try:
                connection = await Connection.open(self.endpoint, connection_name="airflow-rabbitmq-spark triggerer")
                self._connection = connection
                self.connections_opened += 1
                delay, broken_since = RETRY_DELAY[0], None
                await self._serve(connection)
            except RabbitMQSparkError as error:
                now = time.monotonic()
                first, broken_since = broken_since is None, broken_since or now
                patient = self.connections_opened > 0 and now - broken_since < STUBBORN
                if not error.transient and not patient:
                    for subscription in list(self._subscriptions):
                        self._drop(subscription, error)
                    return
                self._log(error, first=first)
            finally:
                for subscription in self._subscriptions:
                    subscription.interrupted()
                if connection is not None:
                    await asyncio.shield(connection.close())
            if self._subscriptions:
                await asyncio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311 - jitter is no secret
                delay = min(delay * 2, RETRY_DELAY[1])

    async def _serve(self, connection: Connection) -> None:
        """Consume for every subscription until nobody is left (return) or the connection is gone (raise)."""
        consuming = await connection.channel()
        await consuming.prefetch(PREFETCH)
        self._wanted = asyncio.Queue()
        for subscription in self._subscriptions:
            self._wanted.put_nowait(subscription)
        # Two stages, so that one looks while the other consumes: each waits for the broker's answer.
        found: asyncio.Queue[Subscription] = asyncio.Queue()
        stages = [
            asyncio.ensure_future(stage)
            for stage in (self._look(connection, found), self._consume(consuming, found), self._until_idle())
        ]
        try:
            done, _ = await asyncio.wait(
                cast("list[asyncio.Future[Any]]", [*stages, consuming.closed]), return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            for stage in stages:
                stage.cancel()
            await asyncio.gather(*stages, return_exceptions=True)
        if consuming.closed in done:
            raise consuming.closed.result()
        for stage in stages:
            if stage in done:
                stage.result()

    async def _until_idle(self) -> None:
        while True:
            while self._subscriptions:
                self._empty.clear()
                await self._empty.wait()
            await asyncio.sleep(LINGER)
            if not self._subscriptions:
                return

    async def _look(self, connection: Connection, found: asyncio.Queue[Subscription]) -> None:
        """Pass on the subscriptions whose queue exists.

        To consume a queue that is not there closes the channel, and with it everybody else's consumers; so another
        channel looks first. A queue that is deleted just in between costs the others a reconnect, and nothing else.
        """
        looking = await connection.channel()
        while True:
            subscription = await self._wanted.get()
            if subscription not in self._subscriptions or subscription.satisfied:
                continue
            if not looking.is_open:
                looking = await connection.channel()
            try:
                await looking.declare_queue(subscription.queue, passive=True)
            except (NotFound, AccessRefused, TopologyConflict) as error:
                if "home node" in str(error):
                    # The queue's node is down, and comes back: look again, later.
                    self._log(error, first=False)
                    asyncio.get_running_loop().call_later(RETRY_DELAY[1], self._wanted.put_nowait, subscription)
                else:
                    self._drop(subscription, error)
            else:
                found.put_nowait(subscription)

    async def _consume(self, consuming: Channel, found: asyncio.Queue[Subscription]) -> None:
        prefetch = PREFETCH
        while True:
            subscription = await found.get()
            if subscription.prefetch != prefetch:
                # It counts for the consumers that start after it, each by itself.
                prefetch = subscription.prefetch
                await consuming.prefetch(prefetch)
            tag = await consuming.consume(
                subscription.queue,
                partial(subscription.deliver, consuming),
                on_cancelled=partial(self._on_deleted, subscription),
            )
            subscription.consumer = (consuming, tag)
            if subscription not in self._subscriptions or subscription.satisfied:
                # It was closed meanwhile.
                await self._end_consumer(subscription)

    def _on_deleted(self, subscription: Subscription) -> None:
        self._drop(subscription, NotFound(f"The queue {subscription.queue!r} was deleted while it was consumed."))

    def _log(self, error: RabbitMQSparkError, *, first: bool) -> None:
        """Say a trouble when it begins, and once in a while as long as it lasts."""
        now = time.monotonic()
        if first or now - self._logged.get(type(error), -LOG_INTERVAL) >= LOG_INTERVAL:
            self._logged[type(error)] = now
            log.warning("%d waits are without a broker; trying again. %s", len(self._subscriptions), error)
