"""One queue's messages on a connection that many share, and the channel that brings them."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from airflow_rabbitmq_spark.exceptions import RabbitMQSparkError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from airflow_rabbitmq_spark.amqp.connection import Channel, Message
    from airflow_rabbitmq_spark.amqp.multiplexer import Multiplexer

log = logging.getLogger(__name__)

#: Messages that one subscription may hold unacknowledged. Enough to hide the way to the broker, and few enough that
#: ten thousand slow readers do not fill the triggerer's memory.
PREFETCH = 16

#: Numbers consumers. Never again in this process, so that no message of an old connection is taken for one of a new.
_numbers = itertools.count(1)


class Consumer(NamedTuple):
    """Where a subscription's messages come from."""

    lane: Lane
    tag: str


def _key(message: Message) -> tuple[str, int]:
    return message.consumer_tag, message.tag


class Subscription:
    """One queue's messages, as they come. An asynchronous context manager.

    There are ten thousand of them in a triggerer, nearly all of which have no message: what only a message needs is
    made when one comes.
    """

    __slots__ = (
        "__weakref__",
        "_error",
        "_held",
        "_messages",
        "_multiplexer",
        "_waiter",
        "consumer",
        "prefetch",
        "queue",
        "satisfied",
    )

    def __init__(self, multiplexer: Multiplexer, queue: str, prefetch: int = PREFETCH) -> None:
        self.queue = queue
        self.prefetch = prefetch
        #: Set when no more is wanted: a reconnect must not start it again, and what still arrives goes back.
        self.satisfied = False
        #: The consumer while there is one; also while it is being started.
        self.consumer: Consumer | None = None
        self._multiplexer = multiplexer
        self._messages: deque[tuple[Channel, Message]] | None = None
        #: By consumer and delivery tag: after a reconnect the tags begin anew, and an old one must not settle another
        #: message.
        self._held: dict[tuple[str, int], Channel] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._error: RabbitMQSparkError | None = None

    async def __aenter__(self) -> Subscription:
        self._multiplexer._add(self)
        return self

    async def __aexit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        await self._multiplexer._remove(self)

    async def next(self, timeout: float | None = None) -> Message:
        """The next message. It must be given to :meth:`ack`, :meth:`reject` or :meth:`give_back`, or is held.

        :param timeout: seconds. What has arrived comes before it, also when it is 0 or less.
        :raises TimeoutError: no message came in time.
        :raises NotFound: the queue does not exist, or was deleted.
        :raises RabbitMQSparkError: the broker cannot be used, and waiting will not help.
        """
        loop = asyncio.get_running_loop()
        deadline = None if timeout is None else loop.time() + timeout
        while True:
            if (message := self.take()) is not None:
                return message
            if self._error is not None:
                raise self._error
            if deadline is not None and loop.time() >= deadline:
                raise TimeoutError
            self._waiter = loop.create_future()
            # Not asyncio.wait_for, which makes a task for each wait (before Python 3.12) and so doubles what one costs.
            alarm = None if deadline is None else loop.call_at(deadline, self._wake)
            try:
                await self._waiter
            finally:
                self._waiter = None
                if alarm is not None:
                    alarm.cancel()

    def take(self) -> Message | None:
        """The next message if it has arrived already; as of :meth:`next`."""
        while self._messages:
            channel, message = self._messages.popleft()
            # What an ended channel delivered has gone back to the queue already.
            if channel.is_open:
                if self._held is None:
                    self._held = {}
                self._held[_key(message)] = channel
                return message
        return None

    def ack(self, message: Message) -> None:
        """The message is done with. Nothing happens if its connection is gone: then it comes again."""
        if (channel := self._let_go(message)) is not None:
            channel.ack(message.tag)

    def reject(self, message: Message) -> None:
        """Nobody can use the message: to where the queue dead-letters."""
        if (channel := self._let_go(message)) is not None:
            channel.reject(message.tag, requeue=False)

    def give_back(self, *, but: Message | None = None) -> None:
        """Everything held goes back to the queue, as :meth:`__aexit__` does too.

        :param but: a message that stays held.
        """
        held, messages = self._held or {}, self._messages or ()
        kept = {} if but is None else {key: channel for key, channel in held.items() if key == _key(but)}
        for key, channel in held.items():
            if key not in kept:
                channel.reject(key[1], requeue=True)
        for channel, message in messages:
            channel.reject(message.tag, requeue=True)
        self._held, self._messages = kept, None

    async def keep_only(self, message: Message) -> None:
        """No more messages are wanted. ``message`` stays held; all others go back to the queue now."""
        await self.end_consumer(but=message)

    def holds(self, message: Message) -> bool:
        """Whether the right to acknowledge ``message`` is still ours: not if the connection was lost since."""
        channel = self._held.get(_key(message)) if self._held else None
        return channel is not None and channel.is_open

    def _let_go(self, message: Message) -> Channel | None:
        return self._held.pop(_key(message), None) if self._held else None

    # Called by the multiplexer and the lane --------------------------------------------------------------------------

    def deliver(self, channel: Channel, message: Message) -> None:
        """Take a message in."""
        if self.satisfied:
            # It was on its way when the consumer was ended.
            channel.reject(message.tag, requeue=True)
            return
        if self._messages is None:
            self._messages = deque()
        self._messages.append((channel, message))
        self._wake()

    def interrupted(self) -> None:
        """The channel is gone: so is the right to acknowledge anything."""
        self.consumer = None
        self._held = self._messages = None

    def fail(self, error: RabbitMQSparkError) -> None:
        """End the waiting with an error."""
        self.consumer = None
        self._error = error
        self._wake()

    async def end_consumer(self, *, but: Message | None = None) -> None:
        """End the consumer, if there is one, and give back what is held."""
        self.satisfied = True
        consumer, self.consumer = self.consumer, None
        if consumer is None:
            self.give_back(but=but)
            return
        # First no more deliveries, then all goes back: the other way round some would come again at once. Both are sent
        # before either is answered, so that no reader sees a queue that has neither this consumer nor what it held.
        cancelling = asyncio.ensure_future(consumer.lane.cancel(consumer.tag))
        try:
            await asyncio.sleep(0)
        finally:
            self.give_back(but=but)
        try:
            await asyncio.shield(cancelling)
        except RabbitMQSparkError:
            log.debug("The connection ended while a consumer was ended; the broker has all back.")

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Lane:
    """A channel, and the subscriptions that consume on it; messages find theirs by the consumer tag.

    :param prefetch: what the channel's consumers may hold now; it counts for those that start after it is set.
    :param on_left: called with each subscription that is without a consumer, because its channel is closed or the broker
        ended it.
    """

    def __init__(self, channel: Channel, on_left: Callable[[Subscription], None]) -> None:
        self.channel = channel
        self._on_left = on_left
        self._prefetch: int | None = None
        self._subscriptions: dict[str, Subscription] = {}
        self._starting: Subscription | None = None
        # Made once: each mention of a method makes an object, and there would be two for each wait.
        self._receive, self._ended = self._deliver, self._on_cancelled
        channel.closed.add_done_callback(self._on_closed)

    async def consume(self, subscription: Subscription) -> None:
        """Start a consumer. One at a time, so that it is known whose fault it is when the broker closes the channel.

        :raises RabbitMQSparkError: the channel is closed now; ``subscription`` has no consumer, and was not left.
        """
        if self._prefetch != subscription.prefetch:
            await self.channel.prefetch(subscription.prefetch)
            self._prefetch = subscription.prefetch
        if subscription.satisfied or subscription.consumer is not None:
            return
        tag = f"wait-{next(_numbers)}"
        self._starting = self._subscriptions[tag] = subscription
        # Before the broker answers: who closes the subscription now ends the consumer that is about to be.
        subscription.consumer = Consumer(self, tag)
        try:
            await self.channel.consume(subscription.queue, self._receive, on_cancelled=self._ended, consumer_tag=tag)
        except BaseException:
            self._subscriptions.pop(tag, None)
            subscription.interrupted()
            raise
        finally:
            self._starting = None

    async def cancel(self, tag: str) -> None:
        """End a consumer."""
        try:
            await self.channel.cancel(tag)
        finally:
            self._subscriptions.pop(tag, None)

    def _deliver(self, message: Message) -> None:
        subscription = self._subscriptions.get(message.consumer_tag)
        if subscription is None:
            self.channel.reject(message.tag, requeue=True)
        else:
            subscription.deliver(self.channel, message)

    def _on_cancelled(self, tag: str) -> None:
        """The broker ended a consumer: its queue was deleted, or is on a node that went down."""
        if (subscription := self._subscriptions.pop(tag, None)) is not None:
            self._leave(subscription)

    def _on_closed(self, _closed: object) -> None:
        left, self._subscriptions = self._subscriptions, {}
        for subscription in left.values():
            if subscription is not self._starting:
                self._leave(subscription)

    def _leave(self, subscription: Subscription) -> None:
        subscription.interrupted()
        if not subscription.satisfied:
            self._on_left(subscription)
