"""What is kept of a job between tries, and what its task fails with."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from airflow.sdk.exceptions import AirflowTaskTimeout

from airflow_rabbitmq_spark.exceptions import (
    ConnectionFailed,
    JobCancelled,
    JobFailed,
    JobLost,
    JobNeverStarted,
    JobVanished,
)

if TYPE_CHECKING:
    from airflow_rabbitmq_spark.job.watch import Outcome
    from airflow_rabbitmq_spark.operators.spark_job import SparkJobOperator


@dataclass
class Record:
    """What is kept of a job across tries.

    :param generation: tells a retry, which goes on with the job, from a task that was cleared, which starts anew:
        Airflow raises ``max_tries`` when a task is cleared.
    :param slot_seconds: how long worker processes have run for the task so far.
    """

    job: dict[str, str]
    generation: int
    start_by: float
    end_by: float | None
    submitted_at: float
    submission_id: str | None = None
    slot_seconds: float = 0.0


def explain(operator: SparkJobOperator, record: Record, outcome: Outcome) -> BaseException:
    """What to raise for a job that did not succeed, with what to look at. A driver's traceback goes to the task's log."""
    from airflow_rabbitmq_spark.job.text import block, line
    from airflow_rabbitmq_spark.job.watch import Verdict

    data = outcome.event.data if outcome.event is not None else {}
    what = f"{operator.application} (job {record.job['job_id']}, {record.submission_id})"
    if outcome.verdict is Verdict.FAILED:
        if trace := data.get("traceback"):
            operator.log.error("The driver's traceback:\n%s", block(trace))
        return JobFailed(f"{what} failed: {line(data.get('type'))}: {block(data.get('message'))}")
    if outcome.verdict is Verdict.CANCELLED:
        return JobCancelled(f"{what} was cancelled: {line(data.get('reason'))}")
    if outcome.verdict is Verdict.LOST:
        since = outcome.lost_at or (outcome.event.time if outcome.event else datetime.now(timezone.utc))
        return JobLost(
            f"{what} is lost: the broker has had no connection of its driver on {line(data.get('host'))} since "
            f"{since:%Y-%m-%d %H:%M:%S %Z}, and it did not come back within {operator.lost_grace:g} s. It was killed, ran "
            "out of memory, or its machine is gone: look at the driver's log on the Spark worker and at that "
            "machine's kernel log."
        )
    if outcome.verdict is Verdict.PENDING:
        return JobLost(
            f"{what}: its driver is gone, and nothing in its queue says what became of it. Somebody purged the queue, "
            "or the broker lost what was in it."
        )
    if outcome.verdict is Verdict.NEVER_STARTED:
        return JobNeverStarted(
            f"{what}: no driver has reported within start_timeout={operator.start_timeout:g} s. "
            f"{_diagnosis(operator, record)}"
        )
    if outcome.verdict is Verdict.TIMED_OUT:
        return AirflowTaskTimeout(
            f"{what} has not ended within execution_timeout={operator.execution_timeout}; it was stopped."
        )
    if outcome.verdict is Verdict.VANISHED:
        return JobVanished(
            f"{what}: its queue is gone. {outcome.reason} Somebody deleted it, or it expired because no triggerer "
            "consumed it for the connection's `retention`. Its driver stops by itself."
        )
    return ConnectionFailed(outcome.reason or f"{what}: the broker cannot be used.")


def _diagnosis(operator: SparkJobOperator, record: Record) -> str:
    """Ask Spark, once, what it knows of a driver that never reported."""
    if record.submission_id is None:
        return "It was not submitted."
    try:
        status = operator._spark().status(record.submission_id)
    except Exception as error:  # noqa: BLE001 - a diagnosis must not hide what it is about
        return f"The Spark master does not answer: {error}"
    state = status.get("driverState")
    advice = {
        "SUBMITTED": "No Spark worker had room for it: look at the free cores and memory on the master's page, and "
        "at driver_memory.",
        "RUNNING": "Its process runs, but could not reach the broker from there: look at the driver's stdout on the "
        "Spark worker.",
    }.get(
        str(state),
        "It ended before it could report: look at the driver's stdout and stderr on the Spark worker. The bundle "
        "must be readable there (argument `bundle`), and Python 3.10 or later be its `python3`.",
    )
    message = status.get("message")
    return f"The Spark master says {state}{f' ({message})' if message else ''}. {advice}"
