"""SparkJobOperator in the moments between a broker and a Spark master: a task that is stopped, a job that is taken up.

The broker is real, and so are the drivers. What stands for Spark starts them without a JVM, and does in between what a
test asks for; tests/airflow has all of it for real.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import json
import os
import signal
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from airflow.sdk.exceptions import TaskDeferred
from airflow.sdk.execution_time.supervisor import WatchedSubprocess

from airflow_rabbitmq_spark.amqp.blocking import Operations
from airflow_rabbitmq_spark.exceptions import BrokerUnreachable, ConnectionFailed, JobCancelled, JobError, JobLost
from airflow_rabbitmq_spark.hooks.rabbitmq import RabbitMQHook
from airflow_rabbitmq_spark.hooks.spark_standalone import USER_JAR
from airflow_rabbitmq_spark.job import mailbox
from airflow_rabbitmq_spark.job.mailbox import Mailbox
from airflow_rabbitmq_spark.job.topology import Job
from airflow_rabbitmq_spark.job.watch import Verdict
from airflow_rabbitmq_spark.operators import spark_job
from airflow_rabbitmq_spark.operators.spark_job import KILL_ASK, KILL_CONNECT, KILL_GRACE, STORE_KEY, SparkJobOperator
from stack.proxy import Proxy
from tests.broker.drivers import PATIENCE, SPARK_PYTHON, alarm, eventually

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from stack.broker import Broker

APPLICATION = """
import sys, time
from pathlib import Path
from airflow_rabbitmq_spark.job import open_job
with open_job():
    Path(sys.argv[1]).touch()
    while True:
        try:
            time.sleep(300)
        except KeyboardInterrupt:
            if "stubborn" not in sys.argv:
                raise
"""


class Spark:
    """A standalone master's REST server (org.apache.spark.deploy.rest) and its one worker."""

    def __init__(self) -> None:
        self.drivers: dict[str, subprocess.Popen[bytes] | None] = {}
        self.killed: list[str] = []
        #: Whether there is room for a driver: one that was submitted waits for it otherwise.
        self.room = True
        #: Called when the master has taken a submission, before it answers.
        self.on_taken = lambda: None
        spark = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                what, _, submission_id = self.path.removeprefix("/v1/submissions/").partition("/")
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                answer = spark.create(json.loads(body)) if what == "create" else spark.kill(submission_id)
                self.send_response(200)
                self.end_headers()
                self.wfile.write(json.dumps(answer).encode())

            def log_message(self, *_arguments: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]

    def __enter__(self) -> Spark:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        for driver in self.drivers.values():
            if driver is not None:
                driver.kill()
                driver.wait()

    def create(self, request: dict) -> dict:
        submission_id = f"driver-{len(self.drivers) + 1}"
        jar, _, *arguments = request["appArgs"]
        assert jar == USER_JAR
        self.drivers[submission_id] = None
        if self.room:
            self.drivers[submission_id] = subprocess.Popen(
                [SPARK_PYTHON, urlsplit(request["appResource"]).path, *arguments],
                env={**os.environ, **request["environmentVariables"]},
                stderr=subprocess.DEVNULL,
            )
        self.on_taken()
        return {"success": True, "submissionId": submission_id}

    def kill(self, submission_id: str) -> dict:
        self.killed.append(submission_id)
        if (driver := self.drivers[submission_id]) is not None:
            driver.kill()
        return {"success": True}


class Store:
    """Airflow's task state store: JSON, across tries."""

    def __init__(self) -> None:
        self._kept: dict[str, str] = {}
        #: The id of each job that was kept.
        self.jobs: list[str] = []
        self.on_get = self.on_set = lambda: None

    def get(self, key: str) -> object:
        self.on_get()
        return json.loads(self._kept.get(key, "null"))

    def set(self, key: str, value: dict) -> None:
        self._kept[key] = json.dumps(value)
        self.jobs.append(value["job"]["job_id"])
        self.on_set()

    @property
    def job(self) -> Job:
        return Job.from_json(json.loads(self._kept[STORE_KEY])["job"])


class Waiting:
    """A task that waits in the worker, on a thread of its own."""

    def __init__(self, execute: Callable[[], object]) -> None:
        self._execute = execute
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._execute()
        except Exception as error:  # noqa: BLE001 - looked at by the test
            self._error = error

    def ended_with(self) -> BaseException | None:
        """Wait for the end; what was raised."""
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        return self._error


class Stage:
    """All that a task meets."""

    def __init__(self, broker: Broker, spark: Spark, folder: Path) -> None:
        self.broker = broker
        self.spark = spark
        self.store = Store()
        #: What the application makes when it runs.
        self.runs = folder / "runs"
        self._application = folder / "application.py"
        self._application.write_text(APPLICATION)

    def task(self, *arguments: str, **more: Any) -> tuple[SparkJobOperator, Callable[[], object]]:
        """A task, and a function that executes it as a worker would."""
        task = SparkJobOperator(
            task_id="task",
            application=str(self._application),
            application_args=[str(self.runs), *arguments],
            conn_id="spark_test",
            rabbitmq_conn_id="rabbitmq_test",
            bundle=str(self.runs.parent),
            **more,
        )
        return task, lambda: task.execute(self.context())

    def context(self) -> dict[str, Any]:
        """What Airflow gives a task."""
        ti = SimpleNamespace(dag_id="dag", task_id="task", run_id="run", try_number=1, max_tries=1)
        return {"ti": ti, "task_state_store": self.store}

    def queues(self) -> set[str]:
        """What is there of the jobs' queues, but for those that go with a driver's connection."""
        ours = (name for name in self.broker.queues() if any(job_id in name for job_id in self.store.jobs))
        return {name for name in ours if ".control." not in name}

    def ended(self, submission_id: str) -> int:
        """Wait until a driver has ended; its exit code."""
        driver = self.spark.drivers[submission_id]
        assert driver is not None
        return driver.wait(PATIENCE)


@pytest.fixture
def stage(broker, tmp_path, monkeypatch):
    with Spark() as spark:
        connection = {"conn_type": "spark", "host": "spark://127.0.0.1", "extra": {"rest-port": spark.port}}
        monkeypatch.setenv("AIRFLOW_CONN_SPARK_TEST", json.dumps(connection))
        monkeypatch.setenv("AIRFLOW_CONN_RABBITMQ_TEST", broker.connection())
        made = Stage(broker, spark, tmp_path)
        yield made
    with Operations(broker.endpoint()) as operations:
        for queue in made.queues():
            operations.delete_queue(queue)


# A task that is stopped -----------------------------------------------------------------------------------------------


STOPPED = "^task was stopped in Airflow while it submitted "


def test_one_that_is_stopped_before_its_queues_are_declared_declares_none(stage, monkeypatch):
    # The exchange is what is declared first, and never deleted.
    monkeypatch.setenv("AIRFLOW_CONN_RABBITMQ_TEST", f"{stage.broker.connection()}&exchange=stopped.early")
    task, execute = stage.task()
    stage.store.on_set = task.on_kill
    with pytest.raises(JobCancelled, match=STOPPED):
        execute()
    assert stage.spark.drivers == {}
    assert stage.queues() == set()
    assert "stopped.early" not in stage.broker.ctl("list_exchanges", "name")


def test_one_that_is_stopped_while_they_are_declared_submits_nothing(stage, monkeypatch):
    task, execute = stage.task()

    def declare(mailbox, job, *, real=Mailbox.declare):
        real(mailbox, job)
        task.on_kill()

    monkeypatch.setattr(Mailbox, "declare", declare)
    with pytest.raises(JobCancelled, match=STOPPED):
        execute()
    assert stage.spark.drivers == {}
    assert stage.queues() == set()


@pytest.mark.parametrize("room", [True, False], ids=["a driver that runs", "a driver that waits for a worker"])
def test_one_that_is_stopped_before_sparks_answer_leaves_no_driver(stage, room):
    spark = stage.spark
    spark.room = room
    task, execute = stage.task("stubborn", cancel_grace=0.0)

    def stop() -> None:
        if room:
            eventually(stage.runs.exists)
        # Nobody knows yet what Spark calls the driver.
        task.on_kill()
        assert spark.killed == []
        stage.store.on_set = refuse

    def refuse() -> None:
        raise PermissionError("the task does not run any more")

    spark.on_taken = stop
    with pytest.raises(JobCancelled, match=STOPPED):
        execute()
    assert spark.killed == ["driver-1"]
    if room:
        assert stage.ended("driver-1") == -signal.SIGKILL
    assert stage.queues() == set()


def test_one_that_is_stopped_just_after_it_is_not_deferred(stage):
    stage.spark.room = False
    task, execute = stage.task()
    saves = itertools.count(1)
    stage.store.on_set = lambda: task.on_kill() if next(saves) == 2 else None
    with pytest.raises(JobCancelled, match=STOPPED):
        execute()
    assert set(stage.spark.killed) == {"driver-1"}
    assert stage.queues() == set()


def test_one_that_is_stopped_while_it_takes_up_a_job_stops_that(stage):
    _, execute = stage.task()
    with pytest.raises(TaskDeferred):
        execute()
    eventually(stage.runs.exists)
    task, execute = stage.task()
    # Before anything is known of the job.
    stage.store.on_get = task.on_kill
    with pytest.raises(JobCancelled, match=STOPPED):
        execute()
    assert stage.ended("driver-1") != 0
    assert list(stage.spark.drivers) == ["driver-1"]
    assert stage.queues() == set()


@pytest.mark.parametrize(("cancel_grace", "grace"), [(20.0, KILL_GRACE), (1.0, 1.0)])
def test_one_that_waits_in_the_worker_asks_its_driver_to_stop(stage, monkeypatch, cancel_grace, grace):
    graces = []

    def stop(*arguments, real=Mailbox.stop, **more):
        graces.append(more["grace"])
        real(*arguments, **more)

    monkeypatch.setattr(Mailbox, "stop", stop)
    task, execute = stage.task(deferrable=False, cancel_grace=cancel_grace)
    waiting = Waiting(execute)
    eventually(stage.runs.exists)
    task.on_kill()
    assert isinstance(waiting.ended_with(), JobError)
    assert stage.ended("driver-1") != 0
    assert stage.queues() == set()
    # What is asked is waited for, but not for longer than Airflow lets this process live.
    assert graces == [grace]
    assert grace < inspect.signature(WatchedSubprocess.kill).parameters["escalation_delay"].default


@pytest.mark.parametrize(
    ("how", "option"),
    # For the silent one, longer than a test may take.
    [(Proxy.refuse, "heartbeat=1"), (Proxy.black_hole, "connection_timeout=3600")],
    ids=["that is away", "that does not answer"],
)
def test_one_that_is_stopped_with_a_broker(stage, monkeypatch, how, option):
    """Its driver is killed through Spark, in the time that Airflow gives."""
    with Proxy(stage.broker.port) as proxy:
        uri = stage.broker.connection().replace(f":{stage.broker.port}/", f":{proxy.port}/")
        monkeypatch.setenv("AIRFLOW_CONN_RABBITMQ_TEST", f"{uri}&{option}")
        task, execute = stage.task("stubborn", deferrable=False, lost_grace=0.0)
        waiting = Waiting(execute)
        eventually(stage.runs.exists)
        how(proxy)
        with pytest.raises(BrokerUnreachable):
            task.on_kill()
        assert stage.spark.killed == ["driver-1"]
        assert stage.ended("driver-1") == -signal.SIGKILL
        # Airflow ends this process. Where it lives on, it hears of it; its connection from before is of no use.
        proxy.restore()
        assert isinstance(waiting.ended_with(), JobLost)


def test_an_alarm_does_not_use_up_the_time_to_kill(stage, monkeypatch):
    monkeypatch.setattr(mailbox, "CANCEL_TIMEOUT", 3600.0)
    task, execute = stage.task("stubborn", deferrable=False, lost_grace=0.0)
    waiting = Waiting(execute)
    eventually(stage.runs.exists)
    with alarm(stage.broker):
        task.on_kill()
        # Perhaps by both: the task that goes on hears of it.
        assert set(stage.spark.killed) == {"driver-1"}
        assert stage.ended("driver-1") == -signal.SIGKILL
    assert isinstance(waiting.ended_with(), JobError)
    assert stage.queues() == set()


def test_all_that_may_come_before_the_kill_fits_into_the_time_that_airflow_gives():
    given = inspect.signature(WatchedSubprocess.kill).parameters["escalation_delay"].default
    # To connect, twice over plain AMQP; and to ask, or to wait for an answer.
    assert given > 2 * KILL_CONNECT + KILL_ASK
    assert given > KILL_CONNECT + KILL_GRACE


def test_on_kill_asks_airflow_for_nothing(stage, monkeypatch):
    """It runs in a signal handler, and what it interrupts may be in the middle of asking."""
    task, execute = stage.task(deferrable=False)
    waiting = Waiting(execute)
    eventually(stage.runs.exists)
    monkeypatch.delenv("AIRFLOW_CONN_RABBITMQ_TEST")
    monkeypatch.delenv("AIRFLOW_CONN_SPARK_TEST")
    task.on_kill()
    assert isinstance(waiting.ended_with(), JobError)
    assert stage.ended("driver-1") != 0
    assert stage.queues() == set()


def test_one_that_timed_out_while_the_broker_is_away_has_its_driver_killed(stage, monkeypatch):
    """There may be no next try to do it."""
    with pytest.raises(TaskDeferred) as deferred:
        stage.task("stubborn")[1]()
    eventually(stage.runs.exists)
    with Proxy(stage.broker.port) as proxy:
        proxy.refuse()
        uri = stage.broker.connection().replace(f":{stage.broker.port}/", f":{proxy.port}/")
        monkeypatch.setenv("AIRFLOW_CONN_RABBITMQ_TEST", uri)
        event = {"job_id": stage.store.job.job_id, "verdict": "timed_out", "reason": None}
        with pytest.raises(ConnectionFailed):
            stage.task()[0].resume(stage.context(), event, **deferred.value.kwargs)
    assert stage.ended("driver-1") == -signal.SIGKILL


# A job that is taken up -----------------------------------------------------------------------------------------------


def test_a_job_whose_queue_is_gone_is_ended_and_another_submitted(stage, broker_endpoint):
    with pytest.raises(TaskDeferred):
        stage.task("stubborn")[1]()
    eventually(stage.runs.exists)
    earlier = stage.store.job
    # It expired, say. The driver has nothing to say, and so does not notice.
    with Operations(broker_endpoint) as operations:
        operations.delete_queue(earlier.job_queue)
    assert stage.queues() == {earlier.will_queue}
    stage.runs.unlink()

    with pytest.raises(TaskDeferred) as deferred:
        stage.task()[1]()
    assert stage.spark.killed == ["driver-1"]
    assert stage.ended("driver-1") == -signal.SIGKILL
    assert list(stage.spark.drivers) == ["driver-1", "driver-2"]
    job = stage.store.job
    assert job.job_id != earlier.job_id
    assert (deferred.value.trigger.job, deferred.value.trigger.submission_id) == (job.to_json(), "driver-2")
    assert stage.queues() == {job.job_queue, job.will_queue}
    eventually(stage.runs.exists)


def test_a_job_that_cannot_be_asked_after_is_neither_given_up_nor_replaced(stage, broker_endpoint, monkeypatch):
    with pytest.raises(TaskDeferred):
        stage.task(lost_grace=600.0)[1]()
    eventually(stage.runs.exists)
    job, record = stage.store.job, stage.store.get(STORE_KEY)
    stage.spark.drivers["driver-1"].kill()
    with Operations(broker_endpoint) as operations:
        eventually(lambda: operations.inspect_queue(job.job_queue).messages == 2)  # started, lost

    def wait(*arguments, real=Mailbox.wait):
        """Somebody else has the queue for himself when the driver's return is waited for."""
        with contextlib.closing(RabbitMQHook("rabbitmq_test").get_conn()) as connection:
            connection.channel().basic_consume(job.job_queue, lambda *_: None, exclusive=True)
            outcome = real(*arguments)
        assert outcome.verdict is Verdict.UNREACHABLE
        return outcome

    monkeypatch.setattr(Mailbox, "wait", wait)
    with pytest.raises(ConnectionFailed, match="Another consumer has this queue for itself"):
        stage.task(lost_grace=600.0)[1]()
    assert (list(stage.spark.drivers), stage.spark.killed) == (["driver-1"], [])
    assert stage.store.get(STORE_KEY) == record
    # Not fenced: its driver may be on its way back.
    assert stage.queues() == {job.job_queue, job.will_queue}
    with Mailbox(broker_endpoint, connection_name="test") as mailbox:
        assert mailbox.look(job).verdict is Verdict.LOST


def test_an_event_about_a_job_that_was_given_up_does_not_end_the_wait_for_another(stage):
    """Airflow on SQLite gave a trigger the id of one that was deleted, whose event came then (make chaos, seed 202)."""
    stage.spark.room = False
    task, execute = stage.task()
    with pytest.raises(TaskDeferred) as deferred:
        execute()
    event = {"job_id": "another", "verdict": "vanished", "reason": "its queue is gone"}
    with pytest.raises(TaskDeferred) as again:
        task.resume(stage.context(), event, **deferred.value.kwargs)
    assert again.value.trigger.job == deferred.value.trigger.job == stage.store.job.to_json()
    assert stage.spark.killed == []
    assert stage.queues() == {stage.store.job.job_queue, stage.store.job.will_queue}


# A job that has succeeded ---------------------------------------------------------------------------------------------


def test_the_queues_of_a_success_are_deleted_when_the_broker_is_back(stage, monkeypatch):
    stage.spark.room = False
    with pytest.raises(TaskDeferred):
        stage.task()[1]()
    with Proxy(stage.broker.port) as proxy:
        uri = stage.broker.connection().replace(f":{stage.broker.port}/", f":{proxy.port}/")
        monkeypatch.setenv("AIRFLOW_CONN_RABBITMQ_TEST", uri)
        proxy.refuse()
        cleaning = Waiting(lambda: stage.task()[0]._clean_up(stage.store.job))
        eventually(lambda: proxy.accepted > 1)
        proxy.restore()
        assert cleaning.ended_with() is None
    assert stage.queues() == set()


def test_a_success_is_none_the_less_one_when_the_broker_stays_away(stage, monkeypatch, capsys):
    monkeypatch.setattr(spark_job, "CLEAN_UP_PATIENCE", 0.5)
    with Proxy(stage.broker.port) as proxy:
        monkeypatch.setenv(
            "AIRFLOW_CONN_RABBITMQ_TEST",
            stage.broker.connection().replace(f":{stage.broker.port}/", f":{proxy.port}/"),
        )
        proxy.refuse()
        task, _ = stage.task()
        task._clean_up(Job.new("dag", "task", "exchange"))
    assert "queues could not be deleted; they expire by themselves" in capsys.readouterr().out
