"""The driver's line to the broker: connects, holds the will, delivers events in order, hears a cancel.

It lives on a thread of its own. Nothing here raises into the application, and nothing here waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import socket
import threading
import time
from collections import deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import pika

from airflow_rabbitmq_spark.amqp.background import Background
from airflow_rabbitmq_spark.amqp.connection import Channel, Connection, Message
from airflow_rabbitmq_spark.exceptions import (
    AccessRefused,
    ConnectionLost,
    EventInvalid,
    JobSuperseded,
    NotFound,
    RabbitMQSparkError,
    Rejected,
    TopologyConflict,
    Unroutable,
)
from airflow_rabbitmq_spark.job.events import CONTENT_TYPE, Event, Kind, decode, encode
from airflow_rabbitmq_spark.job.will import Will

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_rabbitmq_spark.job.handover import Handover

log = logging.getLogger("airflow_rabbitmq_spark.job")

#: Progress events that may wait for the broker; past it the oldest is shed, because only the newest tells anything.
MAX_WAITING_PROGRESS = 100
#: Seconds between attempts to connect, growing from the first to the second, with jitter.
RETRY_DELAY = (0.5, 15.0)
#: Heartbeats after which a refused claim is believed to be another driver's, and not this one's own old connection,
#: which the broker gives up between two and three heartbeats after it last heard of it; and the seconds it may take for
#: that and for the next attempt, before a driver that is the only one stops.
GHOST_HEARTBEATS = 3
GHOST_SLACK = 5.0
#: How often in a row events may be refused before one that is not the last is let go, so that it does not hold up those
#: behind it. A second lies between two attempts.
MAX_REJECTIONS = 3
#: Seconds an application waits at its start for the last will to be laid, which an alarm on the broker can hold up.
LAY_PATIENCE = 5.0
#: Seconds an alarm may block this connection. Closing it would let the will be said of a driver that lives, so it is
#: long; it is finite, so that nothing waits for ever.
BLOCKED_TIMEOUT = 24 * 3600.0


@dataclass
class Report:
    """What became of what was said."""

    delivered: int = 0
    shed: int = 0
    undelivered: list[Event] = field(default_factory=list)
    problem: RabbitMQSparkError | None = None


class Link:
    """Delivers a job's events over a connection that may come and go.

    :param on_cancel: called on the link's thread, once, with the reason when Airflow asks the driver to stop.
    :param on_superseded: called on the link's thread, once, when the job is no longer this driver's.
    """

    def __init__(
        self,
        handover: Handover,
        *,
        on_cancel: Callable[[str], None],
        on_superseded: Callable[[JobSuperseded], None],
    ) -> None:
        self._handover = handover
        self._job = handover.job
        self._on_cancel = on_cancel
        self._on_superseded = on_superseded
        self._outbox: deque[Event] = deque()
        self._sequence = 0
        self._report = Report()
        self._rejections = 0
        self._cancelled = False
        self._superseded: JobSuperseded | None = None
        self._ending = False
        self._lost_at: float | None = None
        #: Connections on which a will was laid, or begun to be: the broker may have said `lost` for each but this one.
        self._terms = 0
        #: Set when it is known whether this is the job's driver, or that the broker cannot be asked.
        self.settled = threading.Event()
        self._problem: RabbitMQSparkError | None = None
        self._background = Background("airflow-spark-job")
        self._wake = self._background.call(self._make_event())
        self._drained = self._background.call(self._make_event())
        self._task = asyncio.run_coroutine_threadsafe(self._run(), self._background.loop)

    @staticmethod
    async def _make_event() -> asyncio.Event:
        return asyncio.Event()

    @property
    def ghost_timeout(self) -> float:
        """Seconds after which a refused claim is believed to be another driver's."""
        return GHOST_HEARTBEATS * self._handover.endpoint.heartbeat + GHOST_SLACK

    # Called by the application's thread ------------------------------------------------------------------------------

    def post(self, kind: Kind, data: dict[str, object]) -> None:
        """Say something, now or when the broker is back. Returns at once."""
        self._background.loop.call_soon_threadsafe(self._enqueue, kind, data)

    def finish(self) -> Report:
        """Wait until all is delivered, for the ``delivery_timeout`` at the most, and close."""
        with contextlib.suppress(TimeoutError, asyncio.TimeoutError):
            self._background.call(self._drain())
        return self.abandon()

    def abandon(self) -> Report:
        """Close without another word: what the broker makes of it is up to the will."""
        with contextlib.suppress(Exception):
            self._background.call(self._cancel_run(), timeout=15)
        self._background.stop()
        self._report.undelivered = list(self._outbox)
        self._report.problem = self._problem
        return self._report

    # On the link's thread --------------------------------------------------------------------------------------------

    def _enqueue(self, kind: Kind, data: dict[str, object]) -> None:
        if kind is Kind.PROGRESS:
            self._shed()
        self._outbox.append(self._event(kind, data))
        self._wake.set()

    def _event(self, kind: Kind, data: dict[str, object]) -> Event:
        return Event(
            kind=kind,
            subject=self._job.job_id,
            source=self._job.source,
            data=data,
            traceparent=self._handover.traceparent,
        )

    def _next(self) -> Event:
        """The event that is to be sent. It gets its number now, so that the numbers are in the order of what is heard."""
        event = self._outbox[0]
        if event.sequence is None:
            self._sequence += 1
            event = self._outbox[0] = replace(event, sequence=self._sequence)
        return event

    def _say_resumed(self, away: float) -> None:
        """Cancel the `lost` that the broker may have said, before all else."""
        resumed = self._event(Kind.RESUMED, {"away": round(away, 3)})
        if not self._outbox or self._outbox[0].sequence is None:
            self._outbox.appendleft(resumed)
        elif not self._outbox[0].is_final:
            # One that was sent and not confirmed has its number, and may have been heard. (Nothing follows a last word.)
            self._outbox.insert(1, resumed)

    def _shed(self) -> None:
        waiting = [event for event in self._outbox if event.kind is Kind.PROGRESS]
        if len(waiting) >= MAX_WAITING_PROGRESS:
            # Never the first of all: it may be the one that is on its way.
            self._outbox.remove(waiting[1])
            self._report.shed += 1
            # A gap in the numbers, for a reader to see.
            self._sequence += 1

    async def _drain(self) -> None:
        self._ending = True
        self._wake.set()
        await asyncio.wait_for(self._drained.wait(), self._handover.settings.delivery_timeout)

    async def _cancel_run(self) -> None:
        task = asyncio.wrap_future(self._task)
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await task

    async def _run(self) -> None:
        delay, ghost_since = RETRY_DELAY[0], None
        while self._superseded is None:
            connection: Connection | None = None
            try:
                connection = await Connection.open(
                    self._handover.endpoint,
                    connection_name=f"airflow-rabbitmq-spark driver {self._job.dag_id}.{self._job.task_id} {self._job.job_id}",
                    blocked_connection_timeout=BLOCKED_TIMEOUT,
                )
                will = await self._take_office(connection)
                self.settled.set()
                ghost_since, delay = None, RETRY_DELAY[0]
                await self._serve(will)
            except JobSuperseded as error:
                self._give_up(error)
            except (AccessRefused, TopologyConflict) as error:
                # The will or the control queue is another connection's: perhaps our own of a moment ago.
                ghost_since = ghost_since or time.monotonic()
                if time.monotonic() - ghost_since > self.ghost_timeout:
                    message = (
                        f"Job {self._job.job_id} has another driver, which holds its will: this one stops, so that the "
                        "application does not run twice at once."
                    )
                    self._give_up(JobSuperseded(message))
                self._note(error)
            except RabbitMQSparkError as error:
                self._note(error)
            finally:
                if connection is not None:
                    await asyncio.shield(connection.close())
            if self._drained.is_set():
                return
            if self._superseded is None:
                await asyncio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311 - jitter is no secret
                delay = min(delay * 2, RETRY_DELAY[1])

    def _note(self, error: RabbitMQSparkError) -> None:
        """Remember why there is no connection, and say it when it is new."""
        if self._lost_at is None:
            self._lost_at = time.monotonic()
        if not isinstance(error, (AccessRefused, TopologyConflict)):
            self.settled.set()
        if type(error) is not type(self._problem):
            log.warning("Not connected to Airflow's broker; the job runs on, and this is tried again: %s", error)
        self._problem = error

    def _give_up(self, error: JobSuperseded) -> None:
        self._superseded = error
        self._problem = error
        self._drained.set()
        self.settled.set()
        self._on_superseded(error)

    async def _take_office(self, connection: Connection) -> Will | None:
        """Become the job's driver on this connection; None when it has to run without a will."""
        channel = await connection.channel()
        await channel.confirm()
        will: Will | None = Will(self._job, channel, host=socket.gethostname())
        try:
            await will.claim()  # type: ignore[union-attr]
        except NotFound as error:
            if "home node" not in str(error):
                raise self._gone() from error
            # A classic queue lives on one node of the cluster, and that one is down.
            log.warning("This job has no last will: if the driver dies, Airflow will not hear of it. %s", error)
            will = None
            channel = await connection.channel()
            await channel.confirm()
        self._channel = channel
        await self._check_job_queue(connection)
        await channel.declare_queue(self._job.control_queue, exclusive=True)
        await channel.consume(self._job.control_queue, lambda message: self._on_control(channel, message))
        self._terms += 1
        if will is not None:
            laying = asyncio.ensure_future(will.lay())
            try:
                await asyncio.wait([laying], timeout=LAY_PATIENCE)
                # This is the job's driver; its application need not wait until an alarm is over.
                self.settled.set()
                await laying
            finally:
                laying.cancel()
        return will

    async def _check_job_queue(self, connection: Connection) -> None:
        looking = await connection.channel()
        try:
            await looking.declare_queue(self._job.job_queue, passive=True)
        except NotFound as error:
            if "home node" in str(error):
                raise ConnectionLost(str(error)) from error
            raise self._gone() from error
        await looking.close()

    def _gone(self) -> JobSuperseded:
        return JobSuperseded(
            f"Job {self._job.job_id} of {self._job.dag_id}.{self._job.task_id} was given up by Airflow: its queues are "
            "gone. It has ended, was cancelled, or a newer try took over. This driver stops."
        )

    async def _serve(self, will: Will | None) -> None:
        """Deliver until the last word is said (return) or the channel is gone (raise)."""
        channel = self._channel
        if self._lost_at is not None and self._terms > 1:
            away = time.monotonic() - self._lost_at
            log.info("Connected to Airflow's broker again after %.1f s.", away)
            self._say_resumed(away)
        self._lost_at, self._problem = None, None
        renew_at = time.monotonic() + self._handover.settings.will_renewal
        while True:
            # An application that reports without a pause must not keep its will from being renewed.
            while self._outbox and time.monotonic() < renew_at and not (will is not None and will.revoked.is_set()):
                await self._deliver(channel, self._next())
            if self._ending and not self._outbox:
                if will is not None:
                    # All is said. Should this fail, the broker says `lost` after the last word, which nobody heeds.
                    with contextlib.suppress(RabbitMQSparkError):
                        await will.release()
                self._drained.set()
                return
            self._wake.clear()
            wakers = [asyncio.ensure_future(self._wake.wait())]
            if will is not None:
                wakers.append(asyncio.ensure_future(will.revoked.wait()))
            try:
                await asyncio.wait(
                    cast("list[asyncio.Future[Any]]", [*wakers, channel.closed]),
                    timeout=0.0 if self._outbox else max(0.0, renew_at - time.monotonic()),
                    return_when=asyncio.FIRST_COMPLETED,
                )
            finally:
                for waker in wakers:
                    waker.cancel()
            if channel.closed.done():
                raise channel.closed.result()
            if will is not None and will.revoked.is_set():
                # Given up by Airflow, or only on a node that went down: to claim it again tells.
                raise ConnectionLost("The broker ended this driver's claim on the job.")
            if time.monotonic() >= renew_at:
                if will is not None:
                    await will.lay()
                renew_at = time.monotonic() + self._handover.settings.will_renewal

    async def _deliver(self, channel: Channel, event: Event) -> None:
        """Publish one event and wait, as long as the connection lives, until the broker has it."""
        try:
            await channel.send(
                self._job.exchange,
                self._job.routing_key(event.kind.value),
                encode(event),
                pika.BasicProperties(
                    content_type=CONTENT_TYPE,
                    message_id=event.id,
                    correlation_id=self._job.job_id,
                    type=event.kind.value,
                    delivery_mode=2,
                ),
            )
        except Unroutable as error:
            raise self._gone() from error
        except Rejected as error:
            # One full queue is enough for that, somebody else's too; the job's own may well have taken it.
            self._rejections += 1
            if self._rejections == 1:
                log.warning("Events are refused, and sent again unless they are progress: %s", error)
            if event.kind is not Kind.PROGRESS and (event.is_final or self._rejections < MAX_REJECTIONS):
                await asyncio.sleep(1.0)
                return
            self._report.shed += 1
        except EventInvalid as error:
            log.warning("An event could not be written and is dropped: %s", error)
            self._report.shed += 1
        else:
            self._report.delivered += 1
            self._rejections = 0
        with contextlib.suppress(ValueError):
            self._outbox.remove(event)

    def _on_control(self, channel: Channel, message: Message) -> None:
        channel.ack(message.tag)
        try:
            event = decode(message.body)
        except EventInvalid as error:
            log.warning("A message to this driver was ignored: %s.", error)
            return
        if event.kind is not Kind.CANCEL or event.subject != self._job.job_id or self._cancelled:
            return
        self._cancelled = True
        self._on_cancel(str(event.data.get("reason") or "Airflow asked for it"))


def process_details() -> dict[str, object]:
    """What a ``started`` event says of the process: where a person would look for it."""
    return {"host": socket.gethostname(), "pid": os.getpid()}
