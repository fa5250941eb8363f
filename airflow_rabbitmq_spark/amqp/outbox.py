"""Publishing from a process that must never wait for a broker: a bounded queue, and one thread that empties it.

What is put in is confirmed by the broker, or tried again; at most so much is kept, and of what comes on top of that the
oldest goes. What went is counted and said in the log. The thread lives while there is something to say: a process that
has fallen silent has no thread and no connection.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import random
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    # Not imported by whoever only puts something in: pika and its connection are the thread's business.
    from collections.abc import Callable

    from airflow_rabbitmq_spark.amqp.connection import Channel, Connection
    from airflow_rabbitmq_spark.amqp.endpoint import Endpoint
    from airflow_rabbitmq_spark.amqp.publisher import Outgoing

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds of silence after which the connection is closed and the thread ends.
IDLE = 10.0
#: Seconds between two attempts at a broker that is away: the first, and the most it grows to; each give or take half.
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
#: Seconds to wait for the broker to confirm a message.
CONFIRM_TIMEOUT = 10.0
#: Messages under way at a time.
BATCH = 100
#: Seconds between two lines in the log about the same trouble.
SAY_AGAIN = 60.0


class Unsendable(Exception):
    """No message could be made of what was put in."""


class Outbox(Generic[T]):
    """See the module. Safe for threads, and across a fork: a child begins with an empty one.

    :param exchange: a topic exchange; made, durable, where it is missing.
    :param find: tells where the broker is; asked on the thread, again before each attempt to connect.
    :param make: makes a message of what was put in; called on the thread.
    :param size: how much is kept while it cannot be delivered.
    :param flush_timeout: seconds that the process waits at its end, at the most, for what is left to be delivered.
    """

    def __init__(
        self,
        exchange: str,
        *,
        find: Callable[[], Endpoint],
        make: Callable[[T], Outgoing],
        size: int,
        flush_timeout: float,
    ) -> None:
        self._exchange = exchange
        self._find = find
        self._make = make
        self._size = size
        self._flush_timeout = flush_timeout
        self._abandoned: list[object] = []
        self._begin()
        os.register_at_fork(after_in_child=self._after_fork)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._waiting: deque[T] = deque()
        self._in_hand = 0
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._news: asyncio.Event | None = None
        self._hurry: asyncio.Event | None = None
        self._failures = 0
        self._given_up = False
        self._will_flush_at_exit = False
        #: Over the life of the process.
        self.delivered = self.dropped = 0
        self._dropped_unsaid = 0
        self._said_at: float | None = None
        self._in_trouble = False

    def _after_fork(self) -> None:
        # The thread is the parent's, and so is what waits. The loop stays referenced: to close it here would take the
        # parent's sockets out of the epoll object that both share.
        self._abandoned.append((self._loop, self._news, self._hurry, self._thread))
        self._begin()

    def put(self, item: T) -> None:
        """Have something published. Returns at once and never raises."""
        with self._lock:
            if len(self._waiting) >= self._size:
                self._waiting.popleft()
                self._count_dropped()
                if not self._in_trouble:
                    self._say("more came than the broker took")
            self._waiting.append(item)
            self._wake(self._news)

    def flush(self) -> bool:
        """Wait until everything is delivered, but not for long: no more than ``flush_timeout``, and one more failure.

        :return: whether everything is.
        """
        with self._changed:
            if self._is_empty():
                return True
            failures = self._failures
            self._wake(self._hurry)
            self._changed.wait_for(
                lambda: self._is_empty() or self._failures > failures,
                # Who did not get through a moment ago is not waited for twice.
                timeout=0 if self._given_up else self._flush_timeout,
            )
            self._given_up = not self._is_empty()
            return not self._given_up

    def _is_empty(self) -> bool:
        return not self._waiting and not self._in_hand

    def _wake(self, event: asyncio.Event | None) -> None:
        """Tell the thread something, or start it. Called with the lock."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="rabbitmq-outbox", daemon=True)
            self._thread.start()
            if not self._will_flush_at_exit:
                self._will_flush_at_exit = True
                atexit.register(self._at_exit)
        elif self._loop is not None and event is not None:
            self._loop.call_soon_threadsafe(event.set)

    def _at_exit(self) -> None:
        if not self.flush():
            with self._lock:
                left = len(self._waiting) + self._in_hand
            log.warning("The process ends; %d events for exchange %r were not delivered.", left, self._exchange)

    # The thread ------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            asyncio.run(self._deliver())
        except Exception:
            log.exception("Events for exchange %r cannot be delivered just now.", self._exchange)
            with self._lock:
                self._thread = self._loop = None

    async def _deliver(self) -> None:
        news, hurry = asyncio.Event(), asyncio.Event()
        with self._lock:
            self._loop, self._news, self._hurry = asyncio.get_running_loop(), news, hurry
        connection: Connection | None = None
        channel: Channel | None = None
        pause = FIRST_PAUSE
        while True:
            news.clear()
            batch = self._take()
            if not batch:
                if not await _is_set(news, IDLE):
                    if connection is not None:
                        await connection.close()
                        connection = channel = None
                    if self._end():
                        return
                continue
            try:
                if connection is None or channel is None or not channel.is_open:
                    if connection is not None:
                        await connection.close()
                    connection, channel = await self._open()
                await self._publish(channel, batch)
            except Exception as error:  # noqa: BLE001 - whatever it is: Airflow goes on, and so does this thread
                self._put_back(batch, error)
                if connection is not None:
                    await connection.close()
                connection = channel = None
                await _is_set(hurry, pause * random.uniform(0.5, 1.5))  # noqa: S311 - a pause is no secret
                hurry.clear()
                pause = min(pause * 2, LONGEST_PAUSE)
            else:
                pause = FIRST_PAUSE

    async def _open(self) -> tuple[Connection, Channel]:
        from airflow_rabbitmq_spark.amqp.connection import Connection
        from airflow_rabbitmq_spark.exceptions import NotFound

        connection = await Connection.open(self._find())
        try:
            channel = await connection.channel()
            try:
                # Looked at first: who may publish to an exchange may not always declare it.
                await channel.declare_exchange(self._exchange, passive=True)
            except NotFound:
                channel = await connection.channel()
                await channel.declare_exchange(self._exchange)
            await channel.confirm()
        except BaseException:
            await connection.close()
            raise
        return connection, channel

    async def _publish(self, channel: Channel, batch: deque[T]) -> None:
        """Publish a batch; what the broker has confirmed is taken out of it."""
        from airflow_rabbitmq_spark.exceptions import Rejected

        futures: list[asyncio.Future[None]] = []
        try:
            for item in batch:
                futures.append(self._send(channel, item))  # noqa: PERF401 - what was sent before one that fails is cancelled below
            for future in futures:
                refusal = None
                try:
                    await channel.confirmed(future, timeout=CONFIRM_TIMEOUT)
                except (Rejected, Unsendable) as error:
                    # A queue that is full today is full for the next one too: only this message is given up.
                    refusal = error
                self._settle(batch, refusal)
        finally:
            for future in futures:
                if not future.cancel() and not future.cancelled():
                    future.exception()  # or asyncio would complain that nobody looked

    def _send(self, channel: Channel, item: T) -> asyncio.Future[None]:
        try:
            message = self._make(item)
        except Exception as error:  # noqa: BLE001 - one that cannot be written must not come back for ever
            broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            broken.set_exception(Unsendable(f"one could not be written ({type(error).__name__}: {error})"))
            return broken
        return channel.send(self._exchange, message.routing_key, message.body, message.properties, mandatory=False)

    # What is where, and what is said of it ---------------------------------------------------------------------------

    def _take(self) -> deque[T]:
        with self._lock:
            batch = deque(self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting))))
            self._in_hand = len(batch)
            return batch

    def _settle(self, batch: deque[T], refusal: Exception | None) -> None:
        with self._changed:
            batch.popleft()
            self._in_hand = len(batch)
            if refusal is not None:
                self._count_dropped()
                self._say(str(refusal))
            else:
                self.delivered += 1
                self._given_up = False
                self._say_recovered()
            self._changed.notify_all()

    def _put_back(self, batch: deque[T], error: Exception) -> None:
        with self._changed:
            self._waiting.extendleft(reversed(batch))
            self._in_hand = 0
            while len(self._waiting) > self._size:
                self._waiting.popleft()
                self._count_dropped()
            self._failures += 1
            self._in_trouble = True
            self._say(str(error) or type(error).__name__)
            self._changed.notify_all()

    def _end(self) -> bool:
        """Whether the thread may end: there is nothing to do, and the next :meth:`put` starts another."""
        with self._lock:
            if self._waiting:
                return False
            self._thread = self._loop = self._news = self._hurry = None
            return True

    def _count_dropped(self) -> None:
        self.dropped += 1
        self._dropped_unsaid += 1

    def _say(self, trouble: str) -> None:
        """One line in the log, and not one for each event."""
        now = time.monotonic()
        if self._said_at is not None and now - self._said_at < SAY_AGAIN:
            return
        self._said_at = now
        dropped, self._dropped_unsaid = self._dropped_unsaid, 0
        log.warning(
            "Events for exchange %r are not delivered: %s %d wait, %d were dropped. Nothing else is held up by it.",
            self._exchange,
            trouble if trouble.endswith(".") else f"{trouble}.",
            len(self._waiting) + self._in_hand,
            dropped,
        )

    def _say_recovered(self) -> None:
        if not self._in_trouble:
            return
        self._in_trouble, self._said_at = False, None
        dropped, self._dropped_unsaid = self._dropped_unsaid, 0
        log.warning("Events for exchange %r are delivered again; %d more were dropped.", self._exchange, dropped)


async def _is_set(event: asyncio.Event, timeout: float) -> bool:
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(event.wait(), timeout)
    return event.is_set()
