"""Waiting for a job: reads its queue until it is clear what became of it.

The triggerer does it while a task is deferred, and the worker where it is not; the rules are the same.

**Who acknowledges what.** Events that only inform (``started``, ``progress``, ``resumed``) are acknowledged once they
were passed on. The event that decides is *not*: it goes back to the queue when the subscription closes, so that
whoever comes next finds it. It is gone only when the queue is deleted, after its reader is done.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from dataclasses import dataclass
from datetime import datetime, timezone
from enum import Enum
from typing import TYPE_CHECKING

from airflow_rabbitmq_spark.exceptions import EventInvalid, NotFound, RabbitMQSparkError
from airflow_rabbitmq_spark.job.events import Event, Kind, decode

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_rabbitmq_spark.amqp.connection import Message
    from airflow_rabbitmq_spark.amqp.multiplexer import Multiplexer, Subscription
    from airflow_rabbitmq_spark.job.topology import Job

log = logging.getLogger(__name__)

#: Bytes above which a body is decoded on another thread, so that the event loop stays free for everybody else: the
#: worst that fits into this many takes 4 ms.
DECODE_ELSEWHERE = 8 * 2**10
#: Event ids remembered, to tell a message that comes again from a new one. More than can be under way at once.
REMEMBERED = 1_000
#: Seconds to look again whether a driver that has not reported is there: only after the start deadline passed.
LOOK_AGAIN = 30.0
#: Seconds between two looks of :meth:`Watch.settled` at the queue, and how many in a row must find nobody else there and
#: nothing left: who has just ended its consumer may not have put everything back at the first.
SETTLE_INTERVAL = 0.25
SETTLED_LOOKS = 2


class Verdict(str, Enum):
    """What became of a job."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    LOST = "lost"
    NEVER_STARTED = "never_started"
    TIMED_OUT = "timed_out"
    VANISHED = "vanished"
    UNREACHABLE = "unreachable"
    #: Nothing in the queue decides, and nobody else holds anything of it.
    PENDING = "pending"
    #: Somebody else holds what the queue may have.
    HELD = "held"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Rules:
    """How long to wait for what. Points in time are seconds since the epoch, so that they survive a restart.

    :param start_by: when to give up on a driver that has not reported.
    :param lost_grace: seconds between the broker's ``lost`` and believing it; and between the return of a broker that was
        away and giving up on a driver that has not reported.
    :param end_by: when to give up altogether.
    """

    start_by: float
    lost_grace: float = 30.0
    end_by: float | None = None


@dataclass(frozen=True)
class Outcome:
    """A verdict and what it rests on.

    :param event: the event that decided, where one did.
    :param lost_at: when the broker gave up the driver, for ``lost``.
    :param reason: the error, for ``vanished`` and ``unreachable``.
    """

    verdict: Verdict
    event: Event | None = None
    lost_at: datetime | None = None
    reason: str | None = None


class Watch:
    """The state of one wait; :meth:`outcome` runs it.

    :param on_event: called on the event loop with each new event that only informs, and with ``lost``.
    """

    def __init__(
        self,
        multiplexer: Multiplexer,
        job: Job,
        rules: Rules,
        on_event: Callable[[Event], None] = lambda _event: None,
    ) -> None:
        self._multiplexer = multiplexer
        self._job = job
        self._rules = rules
        self._on_event = on_event
        self._heard = False
        #: Made when the first event comes: most of ten thousand waits have none yet.
        self._seen: deque[str] | None = None
        self._loss: Message | None = None
        self._lost: tuple[Event, datetime | None] | None = None
        self._lost_deadline: float | None = None
        #: How many messages were no event of the job, so far.
        self.refused = 0

    async def outcome(self, subscription: Subscription) -> Outcome:
        """Read until there is a verdict. The deciding event stays unacknowledged in ``subscription``."""
        start_by = self._rules.start_by
        while True:
            deadlines = [
                self._rules.end_by,
                self._lost_deadline,
                None if self._heard or self._lost else start_by,
            ]
            nearest = min((at for at in deadlines if at is not None), default=None)
            try:
                message = await self._next(subscription, nearest)
            except (TimeoutError, asyncio.TimeoutError):
                if outcome := await self._overdue(start_by):
                    return outcome
                if not self._heard and self._lost is None:
                    start_by = time.time() + LOOK_AGAIN
                continue
            except NotFound as error:
                return Outcome(Verdict.VANISHED, reason=str(error))
            except RabbitMQSparkError as error:
                return Outcome(Verdict.UNREACHABLE, reason=str(error))
            event = await self._read(subscription, message)
            if event is not None and (outcome := self._take(subscription, message, event)):
                return outcome

    async def settled(self, subscription: Subscription, timeout: float) -> Outcome:
        """Read all that the queue has, the deciding event first, without waiting for the driver.

        A `lost` is not the last word: what follows it in the queue is read too, and what another reader holds counts, so
        that one is waited for.

        :param timeout: seconds to wait for other readers to put back what they hold.
        :return: what the queue says, ``PENDING`` where it says nothing, ``HELD`` where another reader does not let go.
        """
        end_by, calm = time.time() + timeout, 0
        while True:
            try:
                message = await self._next(subscription, min(end_by, time.time() + SETTLE_INTERVAL))
            except (TimeoutError, asyncio.TimeoutError):
                pass
            except NotFound as error:
                return Outcome(Verdict.VANISHED, reason=str(error))
            except RabbitMQSparkError as error:
                return Outcome(Verdict.UNREACHABLE, reason=str(error))
            else:
                calm = 0
                event = await self._read(subscription, message)
                if event is not None and (outcome := self._take(subscription, message, event)):
                    return outcome
                continue
            # Its only consumer is this one, and nothing waits: then everything has been read.
            alone = subscription.consumer is not None and await self._counts(self._job.job_queue) == (0, 1)
            calm = calm + 1 if alone else 0
            if calm == SETTLED_LOOKS:
                if self._lost is None:
                    return Outcome(Verdict.PENDING)
                event, at = self._lost
                return Outcome(Verdict.LOST, event, lost_at=at)
            if time.time() >= end_by:
                return Outcome(Verdict.HELD)

    @staticmethod
    async def _next(subscription: Subscription, end_by: float | None) -> Message:
        """The next message. One that has arrived comes before the deadline, also when that has passed.

        :raises TimeoutError: there is none by ``end_by``.
        """
        return await subscription.next(None if end_by is None else end_by - time.time())

    async def _counts(self, queue: str) -> tuple[int, int] | None:
        """Messages that wait in a queue and its consumers; None when that cannot be had, none of both without a queue."""
        try:
            return await self._multiplexer.inspect(queue)
        except NotFound:
            return 0, 0

    async def _overdue(self, start_by: float) -> Outcome | None:
        now = time.time()
        if self._lost is not None and self._lost_deadline is not None and now >= self._lost_deadline:
            event, at = self._lost
            return Outcome(Verdict.LOST, event, lost_at=at)
        if self._rules.end_by is not None and now >= self._rules.end_by:
            return Outcome(Verdict.TIMED_OUT)
        if not self._heard and self._lost is None and now >= start_by and not self._has_just_come_back():
            # Its `started` may have been read by somebody who is gone; a living driver consumes its will.
            counts = await self._counts(self._job.will_queue)
            if counts is not None and counts[1] == 0:
                return Outcome(Verdict.NEVER_STARTED)
        return None

    def _has_just_come_back(self) -> bool:
        """Whether a driver that was without the broker as well may still be about to connect again."""
        back = self._multiplexer.back_since
        return back is not None and time.monotonic() < back + self._rules.lost_grace

    async def _read(self, subscription: Subscription, message: Message) -> Event | None:
        """Decode a message that anybody may have sent; what is no event of this job is dead-lettered, and said once."""
        # A full queue must not keep everybody else waiting.
        await asyncio.sleep(0)
        try:
            if message.problem is not None:
                raise EventInvalid(message.problem)
            if len(message.body) > DECODE_ELSEWHERE:
                event = await asyncio.to_thread(decode, message.body)
            else:
                event = decode(message.body)
            if event.subject != self._job.job_id:
                raise EventInvalid("it is about another job")
            if event.kind is Kind.CANCEL:
                raise EventInvalid("only Airflow says `cancel`, and not here")
        except EventInvalid as error:
            subscription.reject(message)
            self.refused += 1
            if self.refused == 1:
                log.warning(
                    "A message in %s was refused and dead-lettered: %s. Further ones are only counted.",
                    self._job.job_queue,
                    error,
                )
            return None
        return event

    def _take(self, subscription: Subscription, message: Message, event: Event) -> Outcome | None:
        if event.is_final:
            return Outcome(Verdict(event.kind.value), event)
        if event.kind is Kind.LOST:
            if self._lost is None:
                self._lost = event, _dead_since(message)
                self._lost_deadline = time.time() + self._rules.lost_grace
                self._pass_on(event)
            if self._loss is not None:
                subscription.ack(self._loss)
            # One stays for whoever reads next. Not all: a broker that restarts again and again would fill the prefetch.
            self._loss = message
            return None
        if event.kind in (Kind.STARTED, Kind.RESUMED):
            # A driver that speaks lives, also one that Spark has started again (``supervise``).
            self._lost = self._lost_deadline = None
            if self._loss is not None:
                subscription.ack(self._loss)
                self._loss = None
        self._heard = True
        if self._seen is None:
            self._seen = deque(maxlen=REMEMBERED)
        if event.id not in self._seen:
            self._seen.append(event.id)
            self._pass_on(event)
        subscription.ack(message)
        return None

    def _pass_on(self, event: Event) -> None:
        try:
            self._on_event(event)
        except Exception:
            log.exception("An event could not be shown; the wait goes on.")


def _dead_since(message: Message) -> datetime | None:
    """When the broker dead-lettered a message, from the header that it adds: whole seconds, in UTC.

    https://www.rabbitmq.com/docs/dlx#effects
    """
    deaths = message.headers.get("x-death")
    if isinstance(deaths, list) and deaths and isinstance(deaths[0], dict):
        at = deaths[0].get("time")
        if isinstance(at, datetime):
            return at if at.tzinfo else at.replace(tzinfo=timezone.utc)
    return None
