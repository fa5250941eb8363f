"""Applications on a real Spark cluster, submitted as the operator does, and what is heard of them on a real broker.

All are submitted at once, because most of what they take is the start of a JVM; each test looks at one of them.
"""

from __future__ import annotations

import json
import os
import signal
import time

import pytest

from airflow_rabbitmq_spark.amqp.endpoint import Endpoint
from airflow_rabbitmq_spark.job.events import Kind
from airflow_rabbitmq_spark.job.handover import VARIABLE, Settings
from airflow_rabbitmq_spark.job.watch import Verdict
from stack.processes import command_line, free_port
from tests.spark.jobs import APPLICATIONS, PATIENCE, Run

# A test waits for what others have started: for longer than most, where the machine does much else.
pytestmark = pytest.mark.timeout(1200)

BATCHES = [3, 1, 4]
#: The application that ends in some way; the job's settings; what is said of its end.
ENDINGS = {
    "exit": ({}, Verdict.FAILED, {"type": "SystemExit", "exit_code": 3, "message": "exited with code 3"}),
    "raise": ({}, Verdict.FAILED, {"type": "RuntimeError", "message": "what the user sees"}),
    "nothing": ({}, Verdict.SUCCEEDED, {"has_result": False, "result": None}),
    "result": ({}, Verdict.SUCCEEDED, {"has_result": True, "result": []}),
    "not-json": ({}, Verdict.FAILED, {"type": "ResultInvalid"}),
    "too-large": ({"max_result_bytes": 1000}, Verdict.FAILED, {"type": "ResultInvalid"}),
}


@pytest.fixture(scope="module")
def runs(broker, spark_cluster, tmp_path_factory):
    """Every job, submitted; the folder that they write in."""
    folder = tmp_path_factory.mktemp("jobs")
    os.environ["AIRFLOW_CONN_SPARK_TEST"] = spark_cluster.connection()
    endpoint = broker.endpoint()

    def run(application, *arguments, **more):
        return Run(endpoint, "spark_test", application, *map(str, arguments), **more)

    # First those that a test ends itself, then the others: the cluster has room for four drivers at once.
    submitted = {
        "killed": run("lasting.py", folder / "killed"),
        "orphan": run("lasting.py", folder / "orphan"),
        "again": run(
            "lasting.py",
            folder / "again",
            folder / "go",
            lost_grace=PATIENCE,
            conf={"spark.driver.supervise": True},
        ),
    }
    for how, (settings, _, _) in ENDINGS.items():
        submitted[how] = run("ending.py", how, settings=Settings(**settings))
    submitted["plain"] = run("plain.py", "--note", folder / "plain.json", "-x", "ü y")
    submitted["missing"] = run("there-is-no-such.py")
    nowhere = Endpoint.from_uri(f"amqps://user:secret@127.0.0.1:{free_port()}/?connection_timeout=1")
    submitted["deaf"] = run("ending.py", "result", told=nowhere, settings=Settings(delivery_timeout=2))
    (folder / "handed_over.py").write_text("NAME = 'handed over'\n")
    (folder / "data.txt").write_text("some data")
    submitted["report"] = run(
        "report.py",
        "--rows",
        "a b",
        "",
        "{{x}}",
        py_files=str(folder / "handed_over.py"),
        files=str(folder / "data.txt"),
        conf={"spark.test.setting": "set"},
        env_vars={"TEST_SETTING": "set too"},
    )
    texts = folder / "texts"
    texts.mkdir()
    for number, rows in enumerate(BATCHES):
        path = texts / f"{number}.txt"
        path.write_text("row\n" * rows)
        os.utime(path, (number + 1, number + 1))  # the oldest comes first
    submitted["streaming"] = run("streaming.py", texts, folder / "checkpoint", len(BATCHES))
    yield submitted, folder
    for one in submitted.values():
        one.abandon()
    del os.environ["AIRFLOW_CONN_SPARK_TEST"]


def driver(spark_cluster, notes) -> int:
    """The Python process of the driver that writes these notes."""
    deadline = time.monotonic() + PATIENCE
    while not notes.exists():
        assert time.monotonic() < deadline, spark_cluster.driver_logs()
        time.sleep(0.1)
    (pid,) = spark_cluster.driver_pids(str(notes))
    return pid


def test_a_killed_driver_is_said_to_be_lost(runs, spark_cluster, capsys):
    submitted, folder = runs
    run = submitted["killed"]
    run.heard(Kind.PROGRESS)
    pid = driver(spark_cluster, folder / "killed")
    killed = time.time()
    os.kill(pid, signal.SIGKILL)
    outcome = run.outcome()
    with capsys.disabled():
        print(f"\nfrom SIGKILL of the driver to the broker's `lost`: {1000 * (run.heard(Kind.LOST) - killed):.1f} ms")
    assert outcome.verdict is Verdict.LOST
    # The broker writes whole seconds.
    assert int(killed) <= outcome.lost_at.timestamp() <= time.time()
    assert [data["pid"] for data in run.said(Kind.STARTED)][:1] == [pid]


def test_no_secret_is_in_a_command_line(runs, broker, spark_cluster):
    submitted, _ = runs
    submitted["orphan"].heard(Kind.PROGRESS)
    lines = [command_line(pid) for pid in spark_cluster.worker.pids()]
    assert sum("lasting.py" in line for line in lines) >= 2, "the driver's JVM and its Python"
    for secret in (broker.password, VARIABLE):
        assert not [line for line in lines if secret in line]


def test_a_driver_whose_jvm_is_killed_says_so(runs, spark_cluster):
    submitted, folder = runs
    run = submitted["orphan"]
    run.heard(Kind.PROGRESS)
    pid = driver(spark_cluster, folder / "orphan")
    jvms = [one for one in spark_cluster.worker.pids(containing=str(folder / "orphan")) if one != pid]
    for jvm in jvms:
        os.kill(jvm, signal.SIGKILL)
    outcome = run.outcome()
    assert outcome.verdict is Verdict.FAILED
    assert outcome.event.data["type"] == "DriverInterrupted"
    assert "The JVM of this Spark driver is gone: it was killed" in outcome.event.data["message"]
    assert "interrupted" in (folder / "orphan").read_text()


def test_a_driver_that_spark_starts_again_takes_its_loss_back(runs, spark_cluster):
    submitted, folder = runs
    run = submitted["again"]
    run.heard(Kind.PROGRESS)
    pid = driver(spark_cluster, folder / "again")
    os.kill(pid, signal.SIGKILL)
    run.heard(Kind.LOST)
    run.heard(Kind.STARTED, 2)
    (folder / "go").touch()
    outcome = run.outcome()
    assert outcome.verdict is Verdict.SUCCEEDED
    assert outcome.event.data["result"]["pid"] != pid
    assert [line.split()[0] for line in (folder / "again").read_text().splitlines()] == ["begin", "begin", "end"]


@pytest.mark.parametrize("how", ENDINGS)
def test_an_end(runs, how):
    submitted, _ = runs
    _, verdict, data = ENDINGS[how]
    outcome = submitted[how].outcome()
    assert (outcome.verdict, {**outcome.event.data, **data}) == (verdict, outcome.event.data)
    assert [said["fraction"] for said in submitted[how].said(Kind.PROGRESS)] == [0.1]
    assert outcome.event.data["duration"] >= 0


def test_a_traceback_begins_where_the_application_does(runs):
    submitted, _ = runs
    trace = submitted["raise"].outcome().event.data["traceback"]
    assert "LookupError: the cause, with \N{SNOWMAN}" in trace
    assert trace.rstrip().endswith("RuntimeError: what the user sees")
    assert f'File "{APPLICATIONS / "ending.py"}"' in trace
    assert "launcher" not in trace
    assert "runpy" not in trace


@pytest.mark.parametrize(
    ("how", "words"), [("not-json", ("builtins.object at ['a']", "must be JSON")), ("too-large", ("1,000", "10,002"))]
)
def test_a_result_that_cannot_travel_says_why(runs, how, words):
    submitted, _ = runs
    message = submitted[how].outcome().event.data["message"]
    assert all(word in message for word in words), message


def test_an_application_that_knows_nothing_of_us(runs):
    submitted, folder = runs
    run = submitted["plain"]
    outcome = run.outcome()
    assert outcome.verdict is Verdict.SUCCEEDED
    assert not outcome.event.data["has_result"]
    assert len(run.said(Kind.STARTED)) == 1
    path = str(APPLICATIONS / "plain.py")
    assert json.loads((folder / "plain.json").read_text()) == {
        "argv0": path,
        "path0": str(APPLICATIONS),
        "file": path,
        "rest": ["-x", "ü y"],
        "neighbour": "neighbour",
    }


def test_an_application_that_is_not_on_the_spark_worker(runs):
    submitted, _ = runs
    outcome = submitted["missing"].outcome()
    assert outcome.verdict is Verdict.FAILED
    message = outcome.event.data["message"]
    assert f"The application '{APPLICATIONS / 'there-is-no-such.py'}' does not exist on " in message
    assert "put the file on every Spark worker under the same path, or on a shared volume" in message


def test_a_driver_that_no_broker_hears_runs_on_and_says_what_was_not_delivered(runs, spark_cluster):
    submitted, _ = runs
    run = submitted["deaf"]
    deadline = time.monotonic() + PATIENCE
    while (state := run.spark.status(run.submission_id)["driverState"]) in {"SUBMITTED", "RUNNING"}:
        assert time.monotonic() < deadline, state
        time.sleep(0.5)
    assert state == "FINISHED"
    # Spark's PythonRunner joins both of Python's streams to this one.
    log = (spark_cluster.work / run.submission_id / "stdout").read_text()
    assert "Not connected to Airflow's broker; the job runs on" in log
    assert "Not delivered to Airflow: 1 started, 1 progress, 1 succeeded" in log
    assert "secret" not in log


def test_all_that_a_submission_hands_over_arrives(runs):
    submitted, _ = runs
    run = submitted["report"]
    outcome = run.outcome()
    assert outcome.verdict is Verdict.SUCCEEDED, outcome.event.data
    result = dict(outcome.event.data["result"])
    pid, application_id = result.pop("pid"), result.pop("application_id")
    assert result == {
        "arguments": ["--rows", "a b", "", "{{x}}"],
        "py_files": "handed over",
        "files": "some data",
        "executor": ["handed over some data"],
        "conf": "set",
        "env": "set too",
        "name": "test report.py",
    }
    progress = [(data["fraction"], data["text"], data["metrics"]) for data in run.said(Kind.PROGRESS)]
    assert progress == [
        (0.25, "starting Spark", {}),
        (0.5, "on the executor", {"rows": 1}),
        (1.0, "done", {"accuracy": 0.5}),
    ]
    # Once when the session opens, once more when the SparkContext is there.
    first, second = run.said(Kind.STARTED)
    assert first["pid"] == second["pid"] == pid
    assert second["application_id"] == application_id
    assert second["ui"].startswith("http://")
    sequence = [event.sequence for _, event in run.events]
    assert [*sequence, outcome.event.sequence] == list(range(1, len(sequence) + 2))


def test_a_stream_reports_each_micro_batch(runs):
    submitted, _ = runs
    run = submitted["streaming"]
    outcome = run.outcome()
    assert outcome.event.data.get("result") == BATCHES, outcome.event.data
    assert [(data["text"], data["metrics"]) for data in run.said(Kind.PROGRESS)] == [
        ("micro-batch 0", {"rows": 3, "total": 3}),
        ("micro-batch 1", {"rows": 1, "total": 4}),
        ("micro-batch 2", {"rows": 4, "total": 8}),
    ]


def test_no_secret_is_in_a_log(runs, broker, spark_cluster):
    submitted, _ = runs
    for run in submitted.values():
        if run is not submitted["deaf"]:
            run.outcome()
    assert broker.password not in spark_cluster.driver_logs()
    assert broker.password not in spark_cluster.worker.log.read_text() + spark_cluster.master.log.read_text()


def test_no_queue_is_left(runs, broker):
    submitted, _ = runs
    for name, run in submitted.items():
        if name == "deaf":
            continue
        run.outcome()
        # The driver's own is gone when the driver is, which has its last word confirmed before.
        deadline = time.monotonic() + PATIENCE
        while left := {queue for queue in broker.queues() if run.job.job_id in queue}:
            assert time.monotonic() < deadline, (name, left)
            time.sleep(0.1)
