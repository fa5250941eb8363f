"""A job's queues from Airflow's side, for code that blocks: declare, wait, cancel, fence, delete."""

from __future__ import annotations

import contextlib
import logging
import time
from typing import TYPE_CHECKING, Any, TypeVar

import pika

from airflow_rabbitmq_spark.amqp.background import Background
from airflow_rabbitmq_spark.amqp.connection import Channel, Connection
from airflow_rabbitmq_spark.amqp.multiplexer import shared
from airflow_rabbitmq_spark.exceptions import (
    AccessRefused,
    NotFound,
    RabbitMQSparkError,
    TopologyConflict,
    Unconfirmed,
    Unroutable,
)
from airflow_rabbitmq_spark.job.events import CONTENT_TYPE, Event, Kind, encode
from airflow_rabbitmq_spark.job.topology import (
    REFUSED_ARGUMENTS,
    Job,
    job_queue_arguments,
    refused_exchange,
    will_queue_arguments,
)
from airflow_rabbitmq_spark.job.watch import Outcome, Rules, Verdict, Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import TracebackType

    from airflow_rabbitmq_spark.amqp.endpoint import Endpoint

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds to wait for another reader to let go of what it holds. A triggerer lets go within a second or two of its event;
#: one that was stopped or cut off just then, only when the broker has missed its heartbeats.
READ_TIMEOUT = 60.0
#: Seconds for the broker to take a cancel; more, and the driver is killed unasked.
CANCEL_TIMEOUT = 10.0


class Mailbox:
    """One connection to the broker for the worker's side of a job. A context manager.

    :param connection_name: shown in the broker's own list of connections.
    :raises ConnectionFailed: on entering, when the broker cannot be reached or refuses us.
    """

    def __init__(self, endpoint: Endpoint, *, connection_name: str) -> None:
        self._endpoint = endpoint
        self._connection_name = connection_name

    def __enter__(self) -> Mailbox:
        self._background = Background("airflow-spark-mailbox")
        try:
            self._connection = self._background.call(
                Connection.open(self._endpoint, connection_name=self._connection_name)
            )
        except BaseException:
            self._background.stop()
            raise
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        with contextlib.suppress(Exception):
            self._background.call(self._connection.close(), timeout=10)
        self._background.stop()

    def _on_channel(self, work: Callable[[Channel], Coroutine[Any, Any, T]], *, timeout: float | None = None) -> T:
        """Do ``work`` on a channel of its own: a refusal closes only that.

        :raises TimeoutError: it has taken ``timeout`` seconds; the rest goes on without being waited for.
        """

        async def run() -> T:
            channel = await self._connection.channel()
            try:
                return await work(channel)
            finally:
                await channel.close()

        return self._background.call(run(), timeout=timeout)

    def declare(self, job: Job) -> None:
        """Declare the exchange, the queue of refused messages, the job's queue and its will queue.

        :raises AccessRefused: the user may not declare them; says what permission it takes.
        :raises TopologyConflict: something of that name exists and is different.
        """
        retention = self._endpoint.retention

        async def refused(channel: Channel) -> None:
            name = refused_exchange(job.exchange)
            await channel.declare_exchange(name, "fanout")
            await channel.declare_queue(name, arguments=REFUSED_ARGUMENTS)
            await channel.bind_queue(name, name, "")

        async def work(channel: Channel) -> None:
            await channel.declare_exchange(job.exchange)
            await channel.declare_queue(
                job.job_queue,
                arguments=job_queue_arguments(
                    job.exchange,
                    queue_type=self._endpoint.queue_type,
                    retention=retention,
                    server_version=self._connection.server_version,
                ),
            )
            await channel.bind_queue(job.job_queue, job.exchange, job.binding_key)
            await channel.declare_queue(job.will_queue, arguments=will_queue_arguments(job, retention=retention))

        try:
            # It is there for people. One that another version, or somebody's hand, made otherwise serves as well.
            with contextlib.suppress(TopologyConflict):
                self._on_channel(refused)
            self._on_channel(work)
        except AccessRefused as error:
            if not error.remedy:
                # It is not for want of a permission.
                raise
            name = job.exchange.replace(".", "\\.")
            raise AccessRefused(
                f"The user may not declare what a job needs: {error.refusal}",
                f"Give it the permissions, on the broker: rabbitmqctl set_permissions -p '{self._endpoint.virtual_host}' "
                f"'{self._endpoint.username}' '^{name}(\\..*)?$' '^({name}(\\..*)?|amq\\.default)$' '^{name}(\\..*)?$'",
            ) from None

    def exists(self, job: Job) -> bool:
        """Whether the job's queue is there."""

        async def work(channel: Channel) -> bool:
            try:
                await channel.declare_queue(job.job_queue, passive=True)
            except NotFound:
                return False
            return True

        return self._on_channel(work)

    def wait(self, job: Job, rules: Rules, on_event: Callable[[Event], None] = lambda _event: None) -> Outcome:
        """Wait until it is clear what became of the job. The event that decided stays in the queue.

        :param on_event: called on another thread with each event that only informs.
        """

        async def work() -> Outcome:
            multiplexer = shared(self._endpoint)
            async with multiplexer.subscribe(job.job_queue) as subscription:
                return await Watch(multiplexer, job, rules, on_event).outcome(subscription)

        return self._background.call(work())

    def look(self, job: Job, on_event: Callable[[Event], None] = lambda _event: None) -> Outcome:
        """What the queue says now of what became of the job (:meth:`Watch.settled`). What decides stays in it.

        :param on_event: called on another thread with each event that only informs.
        """
        # Who dies with what it read in hand puts it back when the broker has missed its heartbeats.
        patience = max(READ_TIMEOUT, 3.0 * self._endpoint.heartbeat)

        async def work() -> Outcome:
            multiplexer = shared(self._endpoint)
            async with multiplexer.subscribe(job.job_queue) as subscription:
                watch = Watch(multiplexer, job, Rules(start_by=0.0), on_event)
                return await watch.settled(subscription, patience)

        return self._background.call(work())

    def fence(self, job: Job) -> bool:
        """Make sure that no driver of the job runs or will run, unless one runs already.

        The will queue is the token: a driver consumes it before anything else, and it is deleted only while nobody
        does. So exactly one of the two happens.

        :return: True when the job is fenced: a driver that starts now finds no will queue and stops. False when a
            driver holds it.
        """

        async def work(channel: Channel) -> bool:
            try:
                await channel.delete_queue(job.will_queue, if_unused=True)
            except TopologyConflict:
                return False
            return True

        return self._on_channel(work)

    def cancel(self, job: Job, reason: str, *, timeout: float = CANCEL_TIMEOUT) -> bool:
        """Ask the driver to stop.

        :param timeout: seconds for the broker to take the message.
        :return: whether there was a driver to hear it.
        :raises Unconfirmed: the broker has not taken it in time: an alarm, or it does not answer.
        """
        event = Event(kind=Kind.CANCEL, subject=job.job_id, source=job.source, data={"reason": reason})

        async def work(channel: Channel) -> bool:
            await channel.confirm()
            try:
                await channel.publish(
                    "",
                    job.control_queue,
                    encode(event),
                    pika.BasicProperties(content_type=CONTENT_TYPE, message_id=event.id, type=event.kind.value),
                )
            except Unroutable:
                return False
            return True

        try:
            # Not by the time-out of `publish`: after that the channel still waits for the broker's goodbye.
            return self._on_channel(work, timeout=timeout)
        except TimeoutError:
            alarm = "blocks publishers (memory or disk alarm) and " if self._connection.blocked else ""
            raise Unconfirmed(f"{self._endpoint.describe()} {alarm}has not taken it in {timeout:g} s.") from None

    def stop(
        self, job: Job, reason: str, *, grace: float, kill: Callable[[], None], ask_timeout: float = CANCEL_TIMEOUT
    ) -> None:
        """End a job: ask first, kill what does not obey in ``grace`` seconds, and delete its queues.

        A driver that is cut off and comes back finds no queues, and stops by itself.

        :param ask_timeout: seconds for the broker to take what the driver is asked.
        """
        try:
            heard = self.cancel(job, reason, timeout=ask_timeout)
        except RabbitMQSparkError as error:
            # An alarm blocks a connection that has published until it ends: nothing more can be done on this one.
            log.warning("Job %s could not be asked to stop and is killed: %s", job.job_id, error)
            kill()
            with Mailbox(self._endpoint, connection_name=self._connection_name) as another:
                another.delete(job)
            return
        ended = False
        if heard:
            end_by = time.time() + grace
            verdict = self.wait(job, Rules(start_by=end_by, lost_grace=0.0, end_by=end_by)).verdict
            ended = verdict in (Verdict.SUCCEEDED, Verdict.FAILED, Verdict.CANCELLED, Verdict.LOST)
        if not ended:
            kill()
        self.delete(job)

    def delete(self, job: Job) -> None:
        """Delete the job's queues; it is no error that they are gone."""

        async def work(channel: Channel) -> None:
            await channel.delete_queue(job.will_queue)
            await channel.delete_queue(job.job_queue)

        self._on_channel(work)
