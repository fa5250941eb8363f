"""Jobs as the operator submits them, without Airflow's scheduler around."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_rabbitmq_spark.hooks.spark_standalone import SparkStandaloneHook
from airflow_rabbitmq_spark.job import bundle
from airflow_rabbitmq_spark.job.handover import Handover, Settings
from airflow_rabbitmq_spark.job.mailbox import Mailbox
from airflow_rabbitmq_spark.job.topology import Job
from airflow_rabbitmq_spark.job.watch import Outcome, Rules
from airflow_rabbitmq_spark.operators import standalone
from airflow_rabbitmq_spark.operators.spark_job import SparkJobOperator

if TYPE_CHECKING:
    from airflow_rabbitmq_spark.amqp.endpoint import Endpoint
    from airflow_rabbitmq_spark.job.events import Event, Kind

APPLICATIONS = Path(__file__).parent.parent / "applications"
#: Seconds for a driver to be scheduled, start and end on a machine that does much else.
PATIENCE = 600.0
WAITERS = ThreadPoolExecutor(32, "test-waiter")


class Run:
    """One submitted job, with all that it says.

    :param told: the endpoint that the driver is told of, where it is not the one that is waited at.
    :param more: arguments of the operator.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        spark_conn_id: str,
        application: str,
        *arguments: str,
        settings: Settings | None = None,
        lost_grace: float = 0.0,
        told: Endpoint | None = None,
        **more: Any,
    ) -> None:
        self.application = str(APPLICATIONS / application)
        self.job = Job.new("tests", Path(application).stem, endpoint.exchange)
        self.events: list[tuple[float, Event]] = []
        self._endpoint = endpoint
        self._changed = threading.Condition()
        self._mailbox = Mailbox(endpoint, connection_name=f"test {application}")
        operator = SparkJobOperator(
            task_id="task",
            application=self.application,
            application_args=list(arguments),
            name=f"test {application}",
            **{"driver_memory": "512m", "executor_memory": "512m", "total_executor_cores": 1, **more},
        )
        handover = Handover(self.job, told or endpoint, settings or Settings())
        self.spark = SparkStandaloneHook(spark_conn_id)
        with self._mailbox as mailbox:
            mailbox.declare(self.job)
        self.submission_id = self.spark.submit(
            standalone.submission(
                operator, bundle=bundle.write().resolve().as_uri(), environment=handover.to_environment()
            )
        )
        self._outcome = WAITERS.submit(self._wait, lost_grace)

    def _wait(self, lost_grace: float) -> Outcome:
        deadline = time.time() + PATIENCE
        with self._mailbox as mailbox:
            outcome = mailbox.wait(self.job, Rules(deadline, lost_grace, deadline), self._note)
            mailbox.delete(self.job)
        return outcome

    def _note(self, event: Event) -> None:
        with self._changed:
            self.events.append((time.time(), event))
            self._changed.notify_all()

    def outcome(self) -> Outcome:
        """Wait for the end. The queues are deleted then."""
        return self._outcome.result()

    def abandon(self) -> None:
        """Delete the queues, which ends the wait."""
        with Mailbox(self._endpoint, connection_name="test clean-up") as mailbox:
            mailbox.delete(self.job)

    def heard(self, kind: Kind, number: int = 1) -> float:
        """Wait until an event of a kind was heard, or so many of them; when the last of them was."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.said(kind)) >= number, PATIENCE), f"no {kind}"
        return [at for at, event in self.events if event.kind is kind][number - 1]

    def said(self, kind: Kind) -> list[dict[str, Any]]:
        """The data of each event of a kind."""
        return [event.data for _, event in self.events if event.kind is kind]
