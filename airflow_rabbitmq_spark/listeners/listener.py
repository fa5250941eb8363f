"""Publishes what becomes of DAG runs and tasks, as CloudEvents, to a topic exchange.

Airflow calls the methods below in the middle of its own work: those of DAG runs in the scheduler's loop, those of tasks
in the task's process, both in the API server where a person sets a state by hand. So a call only notes down what
happened (``amqp/outbox.py``); a thread does the rest, and what it cannot deliver is dropped, counted and said.
"""

from __future__ import annotations

import logging
import socket
import uuid
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow.listeners import hookimpl

from airflow_rabbitmq_spark.amqp.outbox import Outbox

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_rabbitmq_spark.amqp.endpoint import Endpoint
    from airflow_rabbitmq_spark.amqp.publisher import Outgoing
    from airflow_rabbitmq_spark.listeners.settings import Settings

log = logging.getLogger(__name__)

#: Characters of an error, or of Airflow's reason, that travel.
MAX_TEXT = 2_000

DAG_RUN_FIELDS = (
    "run_type",
    "logical_date",
    "data_interval_start",
    "data_interval_end",
    "run_after",
    "queued_at",
    "start_date",
    "end_date",
)
TASK_FIELDS = ("map_index", "try_number", "max_tries", "hostname", "start_date", "end_date")


@dataclass(frozen=True)
class Notice:
    """What happened, noted down; all of it plain values, so that nothing of Airflow's is touched later.

    :param subject: ``dag_run`` or ``task_instance``.
    """

    subject: str
    state: str
    dag_id: str
    run_id: str
    task_id: str | None
    data: dict[str, Any]
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    time: datetime = field(default_factory=lambda: datetime.now(timezone.utc))


class RabbitMQListener:
    """The object that Airflow calls; one in a process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.outbox: Outbox[Notice] = Outbox(
            settings.exchange,
            find=partial(find_broker, settings.rabbitmq_conn_id),
            make=to_message,
            size=settings.queue_size,
            flush_timeout=settings.flush_timeout,
        )
        self._has_failed = False

    @hookimpl
    def on_dag_run_running(self, dag_run: Any, msg: str) -> None:
        """A DAG run has begun."""
        self._note_dag_run(dag_run, "running", msg)

    @hookimpl
    def on_dag_run_success(self, dag_run: Any, msg: str) -> None:
        """A DAG run has ended well."""
        self._note_dag_run(dag_run, "success", msg)

    @hookimpl
    def on_dag_run_failed(self, dag_run: Any, msg: str) -> None:
        """A DAG run has failed."""
        self._note_dag_run(dag_run, "failed", msg)

    @hookimpl
    def on_task_instance_running(self, task_instance: Any) -> None:
        """A task runs: it has begun, or goes on after it was deferred."""
        self._note_task(task_instance, "running")

    @hookimpl
    def on_task_instance_success(self, task_instance: Any) -> None:
        """A task has ended well."""
        self._note_task(task_instance, "success")

    @hookimpl
    def on_task_instance_failed(self, task_instance: Any, error: object) -> None:
        """A try of a task has failed: the last one, or one that is followed by another."""
        again = str(getattr(task_instance, "state", "")) == "up_for_retry"
        self._note_task(task_instance, "up_for_retry" if again else "failed", error)

    @hookimpl
    def on_task_instance_skipped(self, task_instance: Any) -> None:
        """A task has skipped itself."""
        self._note_task(task_instance, "skipped")

    @hookimpl
    def before_stopping(self) -> None:
        """A task's process, or a component, is about to end: the last chance, and a short one."""
        self.outbox.flush()

    def _note_dag_run(self, dag_run: Any, state: str, msg: str) -> None:
        if self._settings.dag_run_events:
            self._note(lambda: dag_run_notice(dag_run, state, msg), dag_run)

    def _note_task(self, task_instance: Any, state: str, error: object = None) -> None:
        if self._settings.task_instance_events:
            self._note(lambda: task_notice(task_instance, state, error), task_instance)

    def _note(self, make: Callable[[], Notice], about: Any) -> None:
        try:
            if self._settings.wants(about.dag_id):
                self.outbox.put(make())
        except Exception:
            # Once: what fails for one event fails for the next, and the scheduler's log is not ours to fill.
            if not self._has_failed:
                self._has_failed = True
                log.exception("An event could not be noted down; Airflow goes on. Said once in each process.")


def dag_run_notice(dag_run: Any, state: str, msg: str) -> Notice:
    """What happened to a DAG run."""
    data = {"dag_id": dag_run.dag_id, "run_id": dag_run.run_id, "state": state, **_loaded(dag_run, DAG_RUN_FIELDS)}
    if msg:
        data["message"] = _text(msg)
    return Notice("dag_run", state, dag_run.dag_id, dag_run.run_id, None, data)


def task_notice(instance: Any, state: str, error: object = None) -> Notice:
    """What happened to a task instance."""
    data = {
        "dag_id": instance.dag_id,
        "run_id": instance.run_id,
        "task_id": instance.task_id,
        "state": state,
        **_loaded(instance, TASK_FIELDS),
    }
    # In the task's process there is the operator itself; elsewhere its name is a column.
    operator = vars(instance).get("operator") or getattr(vars(instance).get("task"), "task_type", None)
    if operator is not None:
        data["operator"] = str(operator)
    if error is not None:
        is_exception = isinstance(error, BaseException)
        data["error"] = {"type": type(error).__name__ if is_exception else None, "message": _text(str(error))}
    return Notice("task_instance", state, instance.dag_id, instance.run_id, instance.task_id, data)


def _loaded(thing: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """The values that the object has at hand. To ask for others could query the database, in the scheduler's loop."""
    have = vars(thing)
    return {name: _plain(have[name]) for name in names if have.get(name) is not None}


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    return value if isinstance(value, int) else str(getattr(value, "value", value))


def _text(text: str) -> str:
    """A text of somebody else's, without the secrets that Airflow knows and without half characters."""
    from airflow.sdk.log import redact  # type: ignore[attr-defined]  # as Airflow's own operators do

    return str(redact(text[:MAX_TEXT])).encode(errors="replace").decode()


def to_message(notice: Notice) -> Outgoing:
    """The notice as a CloudEvent, under ``dag_run.<dag>.<state>`` or ``task_instance.<dag>.<task>.<state>``."""
    from airflow_rabbitmq_spark import cloudevents
    from airflow_rabbitmq_spark.amqp.messages import outgoing
    from airflow_rabbitmq_spark.job.topology import word

    names = [word(name) for name in (notice.dag_id, notice.task_id) if name is not None]
    attributes = {
        "id": notice.id,
        "source": "/".join(["/airflow", *names]),
        "type": f"airflow.{notice.subject}.{notice.state}",
        "subject": notice.run_id,
        "time": notice.time.isoformat(),
    }
    return outgoing(
        "",
        ".".join([notice.subject, *names, notice.state]),
        cloudevents.encode(attributes, notice.data),
        properties={"content_type": cloudevents.CONTENT_TYPE, "message_id": notice.id},
    )


def find_broker(conn_id: str) -> Endpoint:
    """The broker of an Airflow connection, from wherever the process may ask for one."""
    from airflow.sdk.exceptions import AirflowNotFoundException

    from airflow_rabbitmq_spark import __version__
    from airflow_rabbitmq_spark.hooks.rabbitmq import RabbitMQHook

    class Hook(RabbitMQHook):
        @classmethod
        def get_connection(cls, conn_id: str) -> Any:
            try:
                return super().get_connection(conn_id)
            except AirflowNotFoundException:
                # The API server's connections are not those of the task SDK (3.3.2): its own table has them.
                from airflow.models.connection import Connection

                return Connection.get_connection_from_secrets(conn_id)

    return Hook(conn_id).endpoint(f"airflow-rabbitmq-spark {__version__} listener, {socket.gethostname()}")
