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
from typing import TYPE_CHECKING, Any, cast

from airflow_rabbitmq_spark.amqp.connection import Channel, Connection
from airflow_rabbitmq_spark.amqp.per_loop import PerLoop
from airflow_rabbitmq_spark.amqp.subscription import PREFETCH, Lane, Subscription
from airflow_rabbitmq_spark.exceptions import (
    AccessRefused,
    ConfigurationError,
    NotFound,
    RabbitMQSparkError,
    TopologyConflict,
)

if TYPE_CHECKING:
    from collections.abc import Hashable

    from airflow_rabbitmq_spark.amqp.endpoint import Endpoint

__all__ = ["PREFETCH", "Multiplexer", "Subscription", "shared"]

log = logging.getLogger(__name__)

#: Requests for consumers that are under way at a time. This is the pace after a reconnect: a broker that has just
#: started, with all triggerers of a deployment back at once, gets so many from each and no more until it answers; and
#: ten thousand consumers take a few seconds where the broker is a millisecond away.
LANES = 8
#: Seconds between attempts to reconnect, growing from the first to the second, with jitter so that the triggerers of
#: a deployment do not come back to a restarted broker all at once.
RETRY_DELAY = (0.5, 10.0)
#: Seconds for which an error that waiting does not cure (a refused password, say) is still tried again once a
#: connection has been open: a broker that is starting refuses what it accepts a moment later.
STUBBORN = 120.0
#: AMQP 0-9-1, 4.2.5.3: a short string.
MAX_QUEUE_NAME = 255
#: Seconds without a subscription after which the connection is closed.
LINGER = 10.0
#: Seconds between two log lines about the same trouble.
LOG_INTERVAL = 60.0

_shared: PerLoop[Hashable, Multiplexer] = PerLoop()


def shared(endpoint: Endpoint) -> Multiplexer:
    """The multiplexer of ``endpoint`` on the running event loop, made at the first call."""
    by_endpoint = _shared.get()
    multiplexer = by_endpoint.get(endpoint.key())
    if multiplexer is None:
        multiplexer = by_endpoint[endpoint.key()] = Multiplexer(endpoint)
    return multiplexer


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
        #: When the broker was there again after it had been away, by ``time.monotonic()``; None when it never was.
        self.back_since: float | None = None

    def subscribe(self, queue: str, *, prefetch: int = PREFETCH) -> Subscription:
        """A subscription to ``queue``; consuming starts when it is entered (``async with``).

        :param prefetch: how many messages it may hold unacknowledged; 1 leaves all others to other consumers.
        :raises ConfigurationError: AMQP knows no queue of that name.
        """
        try:
            fits = 1 <= len(queue.encode()) <= MAX_QUEUE_NAME
        except (AttributeError, UnicodeEncodeError):
            fits = False
        if not fits:
            raise ConfigurationError(f"{queue!r:.80} is no queue's name: that is a text of 1 to 255 bytes as UTF-8.")
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
            try:
                return await channel.declare_queue(queue, passive=True)
            finally:
                await channel.close()
        except NotFound:
            raise
        except RabbitMQSparkError:
            return None

    def _add(self, subscription: Subscription) -> None:
        self._subscriptions.add(subscription)
        self._wanted.put_nowait(subscription)
        if self._task is None or self._task.done():
            # In an empty context: the task outlives the trigger that happens to start it, and must not log as it.
            self._task = contextvars.Context().run(asyncio.get_running_loop().create_task, self._run())

    async def _remove(self, subscription: Subscription) -> None:
        self._discard(subscription)
        await subscription.end_consumer()

    def _discard(self, subscription: Subscription) -> None:
        self._subscriptions.discard(subscription)
        if not self._subscriptions:
            self._empty.set()

    def _drop(self, subscription: Subscription, error: RabbitMQSparkError) -> None:
        """End one subscription with an error; the others do not notice."""
        self._discard(subscription)
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
                if broken_since is not None:
                    self.back_since = time.monotonic()
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
            except Exception as error:
                # A defect, of whosever: better an error in every task than a wait that nobody ends.
                log.exception("The connection to %s failed in a way nobody foresaw.", self.endpoint.describe())
                for subscription in list(self._subscriptions):
                    self._drop(subscription, RabbitMQSparkError(f"{type(error).__name__}: {error}"))
                return
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
        self._wanted = asyncio.Queue()
        for subscription in self._subscriptions:
            self._wanted.put_nowait(subscription)
        stages = [
            asyncio.ensure_future(stage)
            for stage in (*(self._start_consumers(connection) for _ in range(LANES)), self._until_idle())
        ]
        try:
            done, _ = await asyncio.wait(
                cast("list[asyncio.Future[Any]]", [*stages, connection.closed]), return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            for stage in stages:
                stage.cancel()
            await asyncio.gather(*stages, return_exceptions=True)
        if connection.closed in done:
            raise connection.closed.result()
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

    async def _start_consumers(self, connection: Connection) -> None:
        """Give each wanted subscription a consumer, one after the other; several of these run at a time.

        What the broker refuses costs the channel on which it was asked. So one channel looks whether the queue is there,
        and another consumes. What is refused all the same (deleted just in between, or another's alone) ends in an error,
        and the few that consumed on the same channel start again.
        """
        looking: Channel | None = None
        lane: Lane | None = None
        while True:
            subscription = await self._wanted.get()
            if not self._is_wanted(subscription):
                continue
            try:
                if looking is None or not looking.is_open:
                    looking = await connection.channel()
                await looking.declare_queue(subscription.queue, passive=True)
                if not self._is_wanted(subscription):
                    continue
                if lane is None or not lane.channel.is_open:
                    lane = Lane(await connection.channel(), self._start_again)
                await lane.consume(subscription)
            except RabbitMQSparkError as error:
                if not connection.is_open:
                    raise
                self._refused(subscription, error)
            except Exception as error:
                log.exception("Queue %r could not be consumed; the other waits go on.", subscription.queue)
                self._drop(
                    subscription, RabbitMQSparkError(f"Queue {subscription.queue!r}: {type(error).__name__}: {error}")
                )

    def _is_wanted(self, subscription: Subscription) -> bool:
        return subscription in self._subscriptions and not subscription.satisfied and subscription.consumer is None

    def _start_again(self, subscription: Subscription) -> None:
        """A subscription is without a consumer: look what became of its queue, and consume it again."""
        if self._is_wanted(subscription):
            self._wanted.put_nowait(subscription)

    def _refused(self, subscription: Subscription, error: RabbitMQSparkError) -> None:
        """Decide what it means for a subscription that a channel was closed while it was under way there."""
        about_it = f"'{subscription.queue}'" in str(error)
        if (
            about_it
            and isinstance(error, (NotFound, AccessRefused, TopologyConflict))
            and "home node" not in str(error)
        ):
            self._drop(subscription, error)
            return
        # The queue's node is down, and comes back; or it was not about this queue at all.
        self._log(error, first=False)
        asyncio.get_running_loop().call_later(
            RETRY_DELAY[1] * random.uniform(0.5, 1.0),  # noqa: S311 - spreads load, protects nothing
            self._start_again,
            subscription,
        )

    def _log(self, error: RabbitMQSparkError, *, first: bool) -> None:
        """Say a trouble when it begins, and once in a while as long as it lasts."""
        now = time.monotonic()
        if first or now - self._logged.get(type(error), -LOG_INTERVAL) >= LOG_INTERVAL:
            self._logged[type(error)] = now
            log.warning("%d waits are without a broker; trying again. %s", len(self._subscriptions), error)
