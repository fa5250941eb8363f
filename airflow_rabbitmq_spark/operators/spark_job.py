"""``SparkJobOperator``: runs a Spark application and is told by RabbitMQ what becomes of it."""

from __future__ import annotations

import contextlib
import time
from dataclasses import asdict, replace
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, cast

from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator

from airflow_rabbitmq_spark.exceptions import (
    ConfigurationError,
    ConnectionFailed,
    JobCancelled,
    RabbitMQSparkError,
    SubmissionFailed,
)
from airflow_rabbitmq_spark.hooks.rabbitmq import RabbitMQHook
from airflow_rabbitmq_spark.links.spark_job import LINKS
from airflow_rabbitmq_spark.operators.outcome import Record, explain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow.sdk import Context

    from airflow_rabbitmq_spark.amqp.endpoint import Endpoint
    from airflow_rabbitmq_spark.hooks.spark_standalone import SparkStandaloneHook
    from airflow_rabbitmq_spark.job.events import Event
    from airflow_rabbitmq_spark.job.mailbox import Mailbox
    from airflow_rabbitmq_spark.job.topology import Job
    from airflow_rabbitmq_spark.job.watch import Outcome, Rules

#: Under this key the job is kept in Airflow's task state store.
STORE_KEY = "spark_job"
#: Under this key the job's details are pushed as an XCom, beside the result.
XCOM_DETAILS = "spark_job"
#: Seconds for a driver to end cleanly when Airflow stops the worker's process: Airflow sends SIGKILL 5 s after SIGTERM
#: (``airflow.sdk.execution_time.supervisor``, 3.3.2), and to connect and to clean up takes its part of them.
KILL_GRACE = 2.5
#: Seconds for all of the broker's hosts to let us in then: one that does not answer must leave time to kill the driver
#: through Spark. For plain AMQP it takes as long again to look why it does not answer.
KILL_CONNECT = 1.5
#: Seconds for the broker to take what the driver is asked then: at an alarm it does not.
KILL_ASK = 1.0
#: Seconds in which a succeeded task that cannot delete its queues tries again: about as long as a broker takes to restart,
#: and well within the 20 that Airflow gives a task once its success is stored (``[core] task_success_overtime``).
CLEAN_UP_PATIENCE = 10.0


class SparkJobOperator(SparkSubmitOperator):
    """Run a Spark application; while it runs, hold no worker slot and poll nothing.

    The application is submitted to a Spark standalone master (cluster deploy mode, through its REST API; Python), the
    task is deferred, and RabbitMQ tells it when the job has succeeded, failed or died. The application may report
    progress and a result (``airflow_rabbitmq_spark.job.open_job``); one that knows nothing of that runs too. Its
    result is the task's XCom.

    All of :class:`SparkSubmitOperator`'s arguments are accepted, and templated alike; those that only mean something to
    spark-submit, YARN or Kerberos are refused or ignored with a warning.

    A retry takes up the job of the try before: it waits on for a driver that still runs, takes the result of one that
    succeeded meanwhile, and submits anew when it is dead, after making sure that a driver that starts late will stop.
    A task that was cleared starts a new job and stops the old one.

    :param rabbitmq_conn_id: the broker, a connection of type RabbitMQ. (templated)
    :param deferrable: False waits in the worker and holds its slot; still nothing polls.
    :param start_timeout: how long the driver may take until it reports, in seconds or as a timedelta. It counts from
        the submission, so the time an application waits for a free Spark worker is in it.
    :param lost_grace: seconds between the broker's word that the driver's connection is gone and the task's failure: a
        driver that lives connects again and says so. 0 to 1500, because the broker asks for the message it lent after
        30 minutes.
    :param cancel_grace: seconds a cancelled driver has to end cleanly before it is killed: 0 to 20, because Airflow
        gives a trigger 30 (``[triggerer] on_kill_timeout``).
    :param delivery_timeout: seconds a finished driver waits for a broker that is away, to say its last word.
    :param max_result_bytes: the largest result, as JSON.
    :param bundle: where Spark's workers find this package's driver side: a directory that this worker can write and
        they can read, or the URL of a bundle put there by hand (``python -m airflow_rabbitmq_spark.job.bundle``). The
        folder for temporary files when not given, which is right for a Spark worker on the same machine. (templated)

    :raises ConfigurationError: an argument or a connection is wrong; says which, and what to write.
    :raises SubmissionFailed: Spark did not take the application.
    :raises JobError: the job did not succeed; the subclass and the message say how.
    """

    template_fields: Sequence[str] = (*SparkSubmitOperator.template_fields, "rabbitmq_conn_id", "bundle")
    ui_color = "#ffd8b3"
    operator_extra_links = LINKS

    def __init__(
        self,
        *,
        rabbitmq_conn_id: str = "rabbitmq_default",
        deferrable: bool = True,
        start_timeout: float | timedelta = 600.0,
        lost_grace: float = 30.0,
        cancel_grace: float = 10.0,
        delivery_timeout: float = 300.0,
        max_result_bytes: int = 2**20,
        bundle: str | None = None,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name or "", **kwargs)
        self.rabbitmq_conn_id = rabbitmq_conn_id
        self.deferrable = deferrable
        self.start_timeout = start_timeout.total_seconds() if isinstance(start_timeout, timedelta) else start_timeout
        self.lost_grace = lost_grace
        self.cancel_grace = cancel_grace
        self.delivery_timeout = delivery_timeout
        self.max_result_bytes = max_result_bytes
        self.bundle = bundle
        self._running: Record | None = None
        self._killed = False
        self._broker: Endpoint | None = None
        self._master: SparkStandaloneHook | None = None
        #: Addresses for the task's links, by XCom key, as far as they are known.
        self.links: dict[str, str] = {}
        for argument, value, least, most in (
            ("start_timeout", self.start_timeout, 1, 30 * 86_400),
            ("lost_grace", lost_grace, 0, 1500),
            ("cancel_grace", cancel_grace, 0, 20),
            ("delivery_timeout", delivery_timeout, 0, 86_400),
            ("max_result_bytes", max_result_bytes, 1, 2**20),
        ):
            if not isinstance(value, (int, float)) or not least <= value <= most:
                raise ConfigurationError(
                    f"{self.task_id}: {argument}={value!r} must be a number from {least:,} to {most:,}."
                )

    # Running ---------------------------------------------------------------------------------------------------------

    def execute(self, context: Context) -> Any:
        """Submit, or take up what an earlier try submitted; then defer, or wait."""
        from airflow_rabbitmq_spark.job.mailbox import Mailbox
        from airflow_rabbitmq_spark.operators import standalone

        standalone.check(self)
        self._check_deploy_mode()
        if not self.name:
            self.name = f"{self.dag_id}.{self.task_id}"
        endpoint = self._endpoint()
        self._spark().find()
        earlier = self._load(context)
        with Mailbox(endpoint, connection_name=self._connection_name(context)) as mailbox:
            record, outcome = self._take_up(context, mailbox, earlier) if earlier is not None else (None, None)
            if record is None:
                record = self._submit(context, mailbox, endpoint)
            if outcome is not None:
                return self._conclude(context, mailbox, record, outcome)
            # One that was stopped must not be deferred, to wait for what is stopped, or for what nobody will stop.
            self._heed_kill(mailbox, record)
        return self._wait(context, record)

    def _submit(self, context: Context, mailbox: Mailbox, endpoint: Endpoint) -> Record:
        """Choose the id, keep it, declare the queues, submit: in that order nothing can be missed or run twice."""
        from airflow_rabbitmq_spark.job.handover import Handover, Settings
        from airflow_rabbitmq_spark.job.topology import Job
        from airflow_rabbitmq_spark.operators import standalone

        self._inject_openlineage(context)
        job = Job.new(self.dag_id, self.task_id, endpoint.exchange)
        handover = Handover(
            job,
            endpoint,
            Settings(delivery_timeout=self.delivery_timeout, max_result_bytes=self.max_result_bytes),
            traceparent=_traceparent(),
        )
        submission = standalone.submission(self, bundle=self._bundle_url(), environment=handover.to_environment())
        now = time.time()
        record = Record(
            job=job.to_json(),
            generation=context["ti"].max_tries,
            start_by=now + self.start_timeout,
            end_by=now + self.execution_timeout.total_seconds() if self.execution_timeout else None,
            submitted_at=now,
        )
        self._running = record
        self._save(context, record)
        # Airflow goes on with `execute` for some seconds after it has called `on_kill`.
        self._heed_kill(mailbox, record)
        mailbox.declare(job)
        try:
            self._heed_kill(mailbox, record)
            record.submission_id = self._spark().submit(submission)
        except SubmissionFailed as error:
            # The master may have it all the same, when only its answer was lost. Then the driver holds the will queue, or
            # has ended; and one that starts later finds the queue gone, and stops.
            outcome = self._fence(mailbox, job)
            if outcome is not None and outcome.event is None:
                self._running = None
                mailbox.delete(job)
                raise
            self.log.warning("The Spark master did not confirm the submission, but the driver is there: %s", error)
        except BaseException:
            mailbox.delete(job)
            raise
        self._heed_kill(mailbox, record)
        self._save(context, record)
        self.log.info("Submitted %s as %s, job %s.", self.application, record.submission_id, job.job_id)
        return record

    def _take_up(
        self, context: Context, mailbox: Mailbox, record: Record
    ) -> tuple[Record, Outcome | None] | tuple[None, None]:
        """The job of an earlier try, with what became of it, or without while it is to be waited for.

        Nothing when a new job is to be submitted.
        """
        from airflow_rabbitmq_spark.job.topology import Job
        from airflow_rabbitmq_spark.job.watch import Verdict

        job = Job.from_json(record.job)
        if not mailbox.exists(job):
            # It is over; or its queue expired, or somebody deleted it, and its driver may not have noticed.
            self._spark().kill_quietly(record.submission_id)
            mailbox.delete(job)
            return None, None
        self._running = record
        if record.generation != context["ti"].max_tries or not self.durable:
            self.log.info("The task was cleared: stopping its earlier job %s.", job.job_id)
            self._stop(mailbox, record, "the task was cleared in Airflow")
            self._running = None
            return None, None
        outcome: Outcome | None = self._look(mailbox, job)
        if outcome is not None and outcome.verdict is Verdict.LOST:
            outcome = self._await_return(mailbox, job, outcome)
        elif outcome is not None and outcome.event is None:
            outcome = None if self._may_still_start(record) else self._fence(mailbox, job)
        if outcome is None:
            self.log.info("Job %s of an earlier try still runs; waiting for it.", job.job_id)
            record.end_by = time.time() + self.execution_timeout.total_seconds() if self.execution_timeout else None
            return record, None
        if outcome.verdict is Verdict.SUCCEEDED:
            self.log.info("Job %s of an earlier try has succeeded meanwhile.", job.job_id)
            return record, outcome
        self.log.info("Job %s of an earlier try is over (%s); submitting anew.", job.job_id, outcome.verdict)
        self._running = None
        self._spark().kill_quietly(record.submission_id)
        mailbox.delete(job)
        return None, None

    def _await_return(self, mailbox: Mailbox, job: Job, lost: Outcome) -> Outcome | None:
        """Give a driver that was cut off what is left of ``lost_grace`` to come back, as the trigger would.

        :return: None when it is back; otherwise what the queue says once it is fenced.
        """
        from airflow_rabbitmq_spark.job.watch import Rules, Verdict

        since = lost.lost_at or datetime.now(timezone.utc)
        gone = (datetime.now(timezone.utc) - since).total_seconds()
        left = min(self.lost_grace, max(0.0, self.lost_grace - gone))
        never = time.time() + left + 1
        outcome = mailbox.wait(job, Rules(start_by=never, lost_grace=left, end_by=never))
        if outcome.verdict is Verdict.TIMED_OUT:
            return None
        if outcome.verdict is Verdict.UNREACHABLE:
            raise ConnectionFailed(outcome.reason or "The broker cannot be used.")
        return self._fence(mailbox, job) if outcome.verdict is Verdict.LOST else outcome

    def _may_still_start(self, record: Record) -> bool:
        """Whether a driver that has never reported is on its way. Spark is asked, once, and only at a retry."""
        if record.submission_id is None or time.time() >= record.start_by:
            return False
        try:
            state = self._spark().status(record.submission_id).get("driverState")
        except SubmissionFailed:
            return True
        return state in ("SUBMITTED", "RUNNING", "RELAUNCHING")

    def _look(self, mailbox: Mailbox, job: Job) -> Outcome:
        """What the job's queue says now.

        :raises ConnectionFailed: it cannot be read; the next try can.
        """
        from airflow_rabbitmq_spark.job.watch import Verdict
        from airflow_rabbitmq_spark.triggers.spark_job import describe

        outcome = mailbox.look(job, lambda event: self.log.info("%s", describe(event)))
        if outcome.verdict is Verdict.UNREACHABLE:
            raise ConnectionFailed(outcome.reason or "The broker cannot be used.")
        return outcome

    def _fence(self, mailbox: Mailbox, job: Job) -> Outcome | None:
        """See to it that no driver of the job runs or will run; None when one does.

        :return: what the queue says then: the driver may have said its last word just before.
        """
        from airflow_rabbitmq_spark.job.watch import Verdict

        if not mailbox.fence(job):
            return None
        outcome = self._look(mailbox, job)
        # While somebody else holds what the queue may have, it is not known that there is no success in it.
        return None if outcome.verdict is Verdict.HELD else outcome

    def _wait(self, context: Context, record: Record) -> Any:
        from airflow_rabbitmq_spark.job.mailbox import Mailbox

        self._running = record
        if self._killed:
            with Mailbox(self._endpoint(), connection_name=self._connection_name(context)) as mailbox:
                self._heed_kill(mailbox, record)
        self._find_links(record)
        if not self.deferrable:
            return self._wait_here(context, record)
        from airflow_rabbitmq_spark.triggers.hold_off import fire_after, process_seconds
        from airflow_rabbitmq_spark.triggers.spark_job import SparkJobTrigger

        record.slot_seconds += process_seconds()
        self._save(context, record)
        return self.defer(
            trigger=SparkJobTrigger(
                rabbitmq_conn_id=self.rabbitmq_conn_id,
                spark_conn_id=self._conn_id,
                job=record.job,
                rules=asdict(self._rules(record)),
                submission_id=record.submission_id,
                cancel_grace=self.cancel_grace,
                fire_after=fire_after(),
            ),
            method_name="resume",
            kwargs={"record": asdict(record)},
        )

    def _rules(self, record: Record) -> Rules:
        from airflow_rabbitmq_spark.job.watch import Rules

        return Rules(start_by=record.start_by, lost_grace=self.lost_grace, end_by=record.end_by)

    def _wait_here(self, context: Context, record: Record) -> Any:
        from airflow_rabbitmq_spark.job.mailbox import Mailbox
        from airflow_rabbitmq_spark.job.topology import Job
        from airflow_rabbitmq_spark.links.spark_job import MASTER, at_start, store
        from airflow_rabbitmq_spark.triggers.spark_job import describe

        master_page = self.links.get(MASTER.xcom_key, "")

        def show(event: Event) -> None:
            self.log.info("%s", describe(event))
            if event.kind == "started" and (found := at_start(event.data, master_page)):
                self.links.update(found)
                store(context["ti"], found)

        store(context["ti"], self.links)
        with Mailbox(self._endpoint(), connection_name=self._connection_name(context)) as mailbox:
            outcome = mailbox.wait(Job.from_json(record.job), self._rules(record), show)
        # Another, because the wait may have outlived this one's connection by days.
        with Mailbox(self._endpoint(), connection_name=self._connection_name(context)) as mailbox:
            return self._conclude(context, mailbox, record, outcome)

    def resume(self, context: Context, event: dict[str, Any], record: dict[str, Any]) -> Any:
        """Called when the trigger has fired: read the job's last event from its queue, and act on it."""
        from airflow_rabbitmq_spark.job.mailbox import Mailbox
        from airflow_rabbitmq_spark.job.topology import Job
        from airflow_rabbitmq_spark.job.watch import Outcome, Verdict

        kept = Record(**record)
        endpoint = self._endpoint()
        with contextlib.suppress(ConfigurationError):  # it is only needed to stop a driver
            self._spark().find()
        self._running = kept
        if event["job_id"] != kept.job["job_id"]:
            # Airflow knows triggers by their id, and SQLite gives a new one the id of one that was just deleted: the
            # trigger of a task that was cleared can fire in the name of the one that waits for the task's new job.
            self.log.info("The event is about job %s, which was given up; waiting on.", event["job_id"])
            return self._wait(context, kept)
        verdict = Verdict(event["verdict"])
        try:
            with Mailbox(endpoint, connection_name=self._connection_name(context)) as mailbox:
                outcome = Outcome(verdict, reason=event.get("reason"))
                if verdict in (Verdict.SUCCEEDED, Verdict.FAILED, Verdict.CANCELLED, Verdict.LOST):
                    outcome = self._look(mailbox, Job.from_json(kept.job))
                return self._conclude(context, mailbox, kept, outcome)
        except ConnectionFailed:
            if verdict is Verdict.TIMED_OUT:
                # There may be no next try to do it.
                self._spark().kill_quietly(kept.submission_id)
            raise

    # What became of it -----------------------------------------------------------------------------------------------

    def _conclude(self, context: Context, mailbox: Mailbox, record: Record, outcome: Outcome) -> Any:
        """Return the result, raise what went wrong, or wait on where it turns out that the driver lives."""
        from airflow_rabbitmq_spark.job.topology import Job
        from airflow_rabbitmq_spark.job.watch import Verdict

        job = Job.from_json(record.job)
        if outcome.verdict is Verdict.SUCCEEDED and outcome.event is not None:
            return self._succeed(context, record, outcome.event)
        if outcome.verdict in (Verdict.LOST, Verdict.NEVER_STARTED, Verdict.PENDING, Verdict.HELD):
            found = self._fence(mailbox, job)
            if found is None:
                self.log.info("The driver of job %s is there after all, or its last word is; waiting on.", job.job_id)
                record.start_by = time.time() + self.start_timeout
                return self._wait(context, record)
            if found.event is not None:
                outcome = found
            if outcome.verdict is Verdict.SUCCEEDED and outcome.event is not None:
                return self._succeed(context, record, outcome.event)
        error = explain(self, record, outcome)
        try:
            if outcome.verdict is Verdict.TIMED_OUT:
                self._stop(mailbox, record, "the task's execution_timeout has passed")
            elif outcome.verdict is not Verdict.UNREACHABLE:
                if outcome.verdict in (Verdict.LOST, Verdict.NEVER_STARTED, Verdict.PENDING):
                    self._spark().kill_quietly(record.submission_id)
                mailbox.delete(job)
        except RabbitMQSparkError as trouble:
            self.log.warning("The job's queues could not be deleted; they expire by themselves. %s", trouble)
        self._running = None
        self._run_post_submit_commands()
        raise error

    def _succeed(self, context: Context, record: Record, event: Event) -> Any:
        from airflow_rabbitmq_spark.job.text import number
        from airflow_rabbitmq_spark.job.topology import Job
        from airflow_rabbitmq_spark.triggers.hold_off import process_seconds

        now = time.time()
        resumed_after = now - event.time.timestamp()
        slot_seconds = record.slot_seconds + process_seconds()
        self.log.info(
            "Job %s succeeded; this task runs again %.2f s after the driver's last event and has held a worker slot for "
            "%.1f of %.1f s.",
            event.subject,
            resumed_after,
            slot_seconds,
            now - record.submitted_at,
        )
        if not event.data.get("has_result"):
            self.log.info(
                "The application set no result, so there is no XCom. To return one: "
                "`with open_job() as job: job.result(...)` (airflow_rabbitmq_spark.job)."
            )
        if self.do_xcom_push:
            context["ti"].xcom_push(
                key=XCOM_DETAILS,
                value={
                    "job_id": event.subject,
                    "submission_id": record.submission_id,
                    "ended_at": event.time.isoformat(),
                    "resumed_after": round(resumed_after, 3),
                    "slot_seconds": round(slot_seconds, 3),
                    "duration": number(event.data.get("duration")),
                },
            )
        self._run_post_submit_commands()
        # The queues go when Airflow has stored the success, and not before: whatever dies until then, a retry finds the
        # result in the queue.
        self.on_success_callback = [*_callbacks(self.on_success_callback), lambda _context: self._clean_up(job)]
        job = Job.from_json(record.job)
        self._running = None
        return event.data.get("result")

    def _clean_up(self, job: Job) -> None:
        """Delete the job's queues. A broker that restarts is waited for, but not for long: they expire by themselves."""
        from airflow_rabbitmq_spark.job.mailbox import Mailbox

        give_up = time.monotonic() + CLEAN_UP_PATIENCE
        while True:
            try:
                endpoint = _connecting_within(CLEAN_UP_PATIENCE / 2, self._endpoint())
                with Mailbox(endpoint, connection_name=f"airflow-rabbitmq-spark clean-up {job.job_id}") as mailbox:
                    mailbox.delete(job)
            except RabbitMQSparkError as trouble:
                if not trouble.transient or time.monotonic() >= give_up:
                    self.log.warning("The job's queues could not be deleted; they expire by themselves. %s", trouble)
                    return
                time.sleep(1)
            else:
                return

    # Stopping --------------------------------------------------------------------------------------------------------

    def on_kill(self) -> None:
        """The worker was told to stop this task: stop the job too.

        Airflow calls this from a signal handler. It is not to be asked for anything: what was interrupted may be in the
        middle of asking it.
        """
        from airflow_rabbitmq_spark.job.mailbox import Mailbox

        self._killed = True
        record, self._running = self._running, None
        if record is None:
            return
        try:
            endpoint = _connecting_within(KILL_CONNECT, self._endpoint())
            with Mailbox(endpoint, connection_name="airflow-rabbitmq-spark cancel") as mailbox:
                self._stop(
                    mailbox,
                    record,
                    "the task was stopped in Airflow",
                    grace=min(self.cancel_grace, KILL_GRACE),
                    ask_timeout=KILL_ASK,
                )
        except RabbitMQSparkError:
            # With no broker the driver cannot be asked, and its queues are left to expire.
            self._spark().kill_quietly(record.submission_id)
            raise

    def _heed_kill(self, mailbox: Mailbox, record: Record) -> None:
        """Submit nothing for a task that was stopped, wait for nothing, and leave nothing of it.

        :raises JobCancelled: it was stopped.
        """
        if self._killed:
            self._stop(mailbox, record, "the task was stopped in Airflow", grace=0.0)
            raise JobCancelled(
                f"{self.task_id} was stopped in Airflow while it submitted {self.application}, or took up what an earlier "
                "try had submitted. The job is stopped too."
            )

    def _stop(
        self,
        mailbox: Mailbox,
        record: Record,
        reason: str,
        *,
        grace: float | None = None,
        ask_timeout: float | None = None,
    ) -> None:
        from airflow_rabbitmq_spark.job.mailbox import CANCEL_TIMEOUT
        from airflow_rabbitmq_spark.job.topology import Job

        mailbox.stop(
            Job.from_json(record.job),
            reason,
            grace=self.cancel_grace if grace is None else grace,
            kill=lambda: self._spark().kill_quietly(record.submission_id),
            ask_timeout=CANCEL_TIMEOUT if ask_timeout is None else ask_timeout,
        )

    # Parts -----------------------------------------------------------------------------------------------------------

    def _check_deploy_mode(self) -> None:
        mode = self._deploy_mode or "cluster"
        if mode != "cluster":
            raise ConfigurationError(
                f"{self.task_id}: deploy_mode={mode!r}; SparkJobOperator submits in deploy mode 'cluster' to a Spark "
                "standalone master. Leave deploy_mode out, or write 'cluster'."
            )

    # Each connection is read once, at the beginning: see `on_kill`.

    def _spark(self) -> SparkStandaloneHook:
        from airflow_rabbitmq_spark.hooks.spark_standalone import SparkStandaloneHook

        if self._master is None:
            self._master = SparkStandaloneHook(self._conn_id)
        return self._master

    def _endpoint(self) -> Endpoint:
        if self._broker is None:
            self._broker = RabbitMQHook(self.rabbitmq_conn_id).endpoint()
        return self._broker

    def _connection_name(self, context: Context) -> str:
        ti = context["ti"]
        return f"airflow-rabbitmq-spark {ti.dag_id}.{ti.task_id} {ti.run_id} try {ti.try_number}"

    def _find_links(self, record: Record) -> None:
        """Where a person would look for the job; it is no reason to fail that something is not known."""
        from airflow_rabbitmq_spark.job.topology import Job
        from airflow_rabbitmq_spark.links.spark_job import at_submission, web_address

        try:
            master_page = web_address(self._spark().web_url)
        except ConfigurationError:
            master_page = ""
        self.links.update(at_submission(self._endpoint(), Job.from_json(record.job), master_page))

    def _bundle_url(self) -> str:
        from airflow_rabbitmq_spark.job import bundle

        if self.bundle and "://" in self.bundle:
            return self.bundle
        try:
            return bundle.write(self.bundle).resolve().as_uri()
        except OSError as error:
            raise ConfigurationError(
                f"{self.task_id}: the driver's bundle cannot be written to {self.bundle or 'the temporary folder'!r}: "
                f"{error.strerror}. Set `bundle` to a directory that this worker can write and Spark's workers can read."
            ) from error

    def _inject_openlineage(self, context: Context) -> None:
        from airflow.providers.common.compat.openlineage.utils import spark

        if self._openlineage_inject_parent_job_info:
            self.conf = spark.inject_parent_job_information_into_spark_properties(self.conf or {}, context)
        if self._openlineage_inject_transport_info:
            self.conf = spark.inject_transport_information_into_spark_properties(self.conf or {}, context)

    def _run_post_submit_commands(self) -> None:
        if self.post_submit_commands:
            self._get_hook()._run_post_submit_commands()

    def _load(self, context: Context) -> Record | None:
        store = context.get("task_state_store")
        kept = store.get(STORE_KEY) if store is not None else None
        return Record(**cast("dict[str, Any]", kept)) if isinstance(kept, dict) else None

    def _save(self, context: Context, record: Record) -> None:
        store = context.get("task_state_store")
        if store is not None:
            store.set(STORE_KEY, asdict(record))


def _connecting_within(seconds: float, endpoint: Endpoint) -> Endpoint:
    """The endpoint, with no more than ``seconds`` for all attempts to connect to its hosts, one after the other."""
    patience = min(endpoint.connection_timeout, seconds / len(endpoint.hosts))
    return replace(endpoint, connection_timeout=patience)


def _callbacks(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _traceparent() -> str | None:
    """The current trace, in W3C form, so that the driver's events carry it."""
    from opentelemetry.propagate import inject

    carrier: dict[str, str] = {}
    inject(carrier)
    return carrier.get("traceparent")
