"""The trigger that waits for a Spark job while its task is deferred."""

from __future__ import annotations

import asyncio
import time
from itertools import islice
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseHook
from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_rabbitmq_spark.exceptions import RabbitMQSparkError
from airflow_rabbitmq_spark.hooks.rabbitmq import RabbitMQHook
from airflow_rabbitmq_spark.job.events import Event, Kind
from airflow_rabbitmq_spark.job.mailbox import Mailbox
from airflow_rabbitmq_spark.job.text import line, number
from airflow_rabbitmq_spark.job.topology import Job, refused_exchange
from airflow_rabbitmq_spark.job.watch import Outcome, Rules, Verdict, Watch
from airflow_rabbitmq_spark.links.spark_job import at_start, store_from_trigger, web_address

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

#: Metrics of one progress event that are shown.
MAX_METRICS = 20
#: What stops jobs just now; the event loop itself keeps only weak references to its tasks.
_under_way: set[asyncio.Task[None]] = set()
#: States of a task that goes on: it waits, is about to, or runs.
UNDER_WAY = ("deferred", "scheduled", "queued", "running", "restarting", "up_for_retry", "up_for_reschedule")


class SparkJobTrigger(BaseTrigger):
    """Waits until it is clear what became of a job; shows its progress in the task's log meanwhile.

    It acknowledges what only informs. The event that decides stays in the job's queue for the worker to read: whatever
    dies in between, it is still there. Its own event is small: the verdict, and why where no event says it.

    :param rabbitmq_conn_id: the broker.
    :param spark_conn_id: the Spark master, to kill what does not obey a cancel.
    :param job: the job, as :meth:`Job.to_json` writes it.
    :param rules: the fields of :class:`Rules`.
    :param submission_id: Spark's name for the driver.
    :param cancel_grace: seconds a cancelled driver has to end cleanly before it is killed.
    :param fire_after: seconds since the epoch before which no event is fired.
    """

    def __init__(
        self,
        *,
        rabbitmq_conn_id: str,
        spark_conn_id: str,
        job: dict[str, str],
        rules: Mapping[str, Any],
        submission_id: str | None = None,
        cancel_grace: float = 10.0,
        fire_after: float = 0.0,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rabbitmq_conn_id = rabbitmq_conn_id
        self.spark_conn_id = spark_conn_id
        self.job = job
        self.rules = dict(rules)
        self.submission_id = submission_id
        self.cancel_grace = cancel_grace
        self.fire_after = fire_after
        self._fired = False
        self._storing: asyncio.Task[None] | None = None

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """The class's path and its arguments."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "rabbitmq_conn_id": self.rabbitmq_conn_id,
                "spark_conn_id": self.spark_conn_id,
                "job": self.job,
                "rules": self.rules,
                "submission_id": self.submission_id,
                "cancel_grace": self.cancel_grace,
                "fire_after": self.fire_after,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Fire one event, then hold the job's last event until the worker is about to read it."""
        job = Job.from_json(self.job)
        try:
            multiplexer = await RabbitMQHook(self.rabbitmq_conn_id).amultiplexer()
        except RabbitMQSparkError as error:
            await asyncio.sleep(max(0.0, self.fire_after - time.time()))
            yield self._fire(Outcome(Verdict.UNREACHABLE, reason=str(error)))
            return
        async with multiplexer.subscribe(job.job_queue) as subscription:
            watch = Watch(multiplexer, job, Rules(**self.rules), self._show)
            outcome = await watch.outcome(subscription)
            if watch.refused:
                self.log.warning(
                    "%d messages in the job's queue were no events of it; they are in %s.",
                    watch.refused,
                    refused_exchange(job.exchange),
                )
            await asyncio.sleep(max(0.0, self.fire_after - time.time()))
            yield self._fire(outcome)
            # Airflow cancels a trigger about a second after it has stored its event. Not before that may the job's
            # event go back, or a triggerer that dies now would have lost track of it.
            await asyncio.get_running_loop().create_future()

    def _fire(self, outcome: Outcome) -> TriggerEvent:
        self._fired = True
        return TriggerEvent({"job_id": self.job["job_id"], "verdict": outcome.verdict.value, "reason": outcome.reason})

    def _show(self, event: Event) -> None:
        self.log.info("%s", describe(event))
        # One at a time: each is a call to Airflow, and anybody may say `started` a thousand times.
        free = self._storing is None or self._storing.done()
        if free and event.kind is Kind.STARTED and event.data.get("application_id"):
            self._storing = asyncio.create_task(self._store_links(event))

    async def _store_links(self, event: Event) -> None:
        """Only the driver knows the address of its Spark UI, and the worker is not there to hear it."""
        from airflow_rabbitmq_spark.hooks.spark_standalone import SparkStandaloneHook

        try:
            spark = await BaseHook.aget_connection(self.spark_conn_id)
            master_page = web_address(SparkStandaloneHook(self.spark_conn_id, connection=spark).web_url)
        except Exception:  # noqa: BLE001 - a link is no reason to fail
            master_page = ""
        await store_from_trigger(self.task_instance, at_start(event.data, master_page))

    async def on_kill(self) -> None:
        """The task was cleared or marked while deferred: stop the job, unless it has ended by itself.

        Airflow calls this too in a triggerer that was frozen, when another has taken its triggers over meanwhile.
        """
        if self._fired:
            return
        # Airflow 3.3.2 cancels a trigger again each second until it has ended, and so would end this in the middle.
        stopping = asyncio.get_running_loop().create_task(self._stop())
        _under_way.add(stopping)
        stopping.add_done_callback(_under_way.discard)
        await asyncio.shield(stopping)

    async def _stop(self) -> None:
        if not await self._is_given_up():
            return
        job = Job.from_json(self.job)
        endpoint = await RabbitMQHook(self.rabbitmq_conn_id).aendpoint()
        # Fetched here: a thread of the triggerer cannot ask Airflow for a connection.
        spark = await BaseHook.aget_connection(self.spark_conn_id)

        def stop() -> None:
            from airflow_rabbitmq_spark.hooks.spark_standalone import SparkStandaloneHook

            hook = SparkStandaloneHook(self.spark_conn_id, connection=spark)
            try:
                with Mailbox(endpoint, connection_name=f"airflow-rabbitmq-spark cancel {job.job_id}") as mailbox:
                    mailbox.stop(
                        job,
                        "the task was cleared, or marked as failed or successful, in Airflow",
                        grace=self.cancel_grace,
                        kill=lambda: hook.kill_quietly(self.submission_id),
                    )
            except RabbitMQSparkError:
                # With no broker the driver cannot be asked, and its queues are left to expire.
                hook.kill_quietly(self.submission_id)
                raise

        await asyncio.to_thread(stop)
        self.log.info("Job %s is stopped.", job.job_id)

    async def _is_given_up(self) -> bool:
        """Whether nobody needs the job any more: the task was marked, or cleared and not scheduled yet.

        As long as the task is under way another trigger may wait for the job, or a worker be about to read its result; a
        cleared task that is under way again stops its old job itself.
        """
        from airflow.sdk.execution_time.comms import GetTaskStates, TaskStatesResult
        from airflow.sdk.execution_time.task_runner import SUPERVISOR_COMMS

        task: Any = self.task_instance
        question = GetTaskStates(
            dag_id=task.dag_id,
            task_ids=[task.task_id],
            run_ids=[task.run_id],
            map_index=None if task.map_index < 0 else task.map_index,
        )
        answer = await SUPERVISOR_COMMS.asend(question)
        if not isinstance(answer, TaskStatesResult):
            raise RabbitMQSparkError(f"Airflow does not tell the state of task {task.task_id}: {answer}")
        states = [state for by_task in answer.task_states.values() for state in by_task.values()]
        if not any(state in UNDER_WAY for state in states):
            return True
        self.log.info("The task is %s; job %s is left to who waits for it now.", states[0], self.job["job_id"])
        return False


def describe(event: Event) -> str:
    """One line for the task's log. The event may come from anybody: nothing of its data is taken for granted."""
    data = event.data
    if event.kind is Kind.PROGRESS:
        fraction, metrics = data.get("fraction"), data.get("metrics")
        done = number(fraction)
        parts = ["    " if done is None else f"{min(max(done, 0.0), 1.0):4.0%}", line(data.get("text"))]
        if isinstance(metrics, dict):
            shown = islice(metrics.items(), MAX_METRICS)
            parts += [f"{line(name, 100)}={value:.6g}" for name, found in shown if (value := number(found)) is not None]
        return " ".join(part for part in parts if part)
    if event.kind is Kind.STARTED:
        application = data.get("application_id")
        where = f"on {line(data.get('host'))} (process {line(data.get('pid'))})"
        return f"The driver runs {where}" + (
            f": application {line(application)}, Spark UI {line(data.get('ui'))}" if application else "."
        )
    if event.kind is Kind.RESUMED:
        return f"The driver is connected again after {line(data.get('away'))} s."
    if event.kind is Kind.LOST:
        return "The broker has lost the driver's connection; waiting whether it comes back."
    return f"{event.kind}"
