"""Jobs in a real Airflow, on a real Spark cluster and broker: what a person sees, and what is left behind.

All runs are triggered at once, since most of what they take is waiting; each test follows one of them to its end.
"""

from __future__ import annotations

import os
import re
import signal
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from stack.airflow import Airflow

ROOT = Path(__file__).parent.parent.parent
# A test waits for what others have started: for longer than most, where the machine does much else.
pytestmark = pytest.mark.timeout(1200)

EXAMPLES = sorted(path.name for path in (ROOT / "dags").glob("*.py"))
#: Seconds for anything to come about on a machine that does much else.
PATIENCE = 600.0


def eventually(look, what: str) -> Any:
    """The first true answer of ``look()``."""
    deadline = time.monotonic() + PATIENCE
    while not (answer := look()):
        assert time.monotonic() < deadline, what
        time.sleep(0.2)
    return answer


@dataclass
class Run:
    """One run of a DAG, whose only task is ``job``."""

    airflow: Airflow
    dag_id: str
    notes: Path
    go: Path

    def start(self) -> Run:
        self.run_id = self.airflow.trigger(self.dag_id, notes=str(self.notes), go=str(self.go))
        return self

    def lived_through(self) -> list[str]:
        """What the application has noted, with the number of the driver in place of its process id."""
        text = self.notes.read_text() if self.notes.exists() else ""
        pids = list(dict.fromkeys(line.split()[1] for line in text.splitlines()))
        return [f"{what} {pids.index(pid) + 1}" for what, pid in map(str.split, text.splitlines())]

    def driver(self, number: int = 1) -> int:
        """The process id of the application's driver, once it has begun."""

        def look() -> int:
            pids = [line.split()[1] for line in self.notes.read_text().splitlines()] if self.notes.exists() else []
            pids = list(dict.fromkeys(pids))
            return int(pids[number - 1]) if len(pids) >= number else 0

        return eventually(look, f"{self.dag_id}: no driver {number} has begun")

    def task(self) -> dict[str, Any]:
        return self.airflow.task(self.dag_id, self.run_id, "job")

    def is_in(self, *states: str) -> str:
        return self.airflow.wait_for_task(self.dag_id, self.run_id, "job", *states, timeout=PATIENCE)

    def ended(self) -> str:
        return self.airflow.wait_for_run(self.dag_id, self.run_id, timeout=PATIENCE)

    def result(self, key: str = "return_value") -> Any:
        return self.airflow.xcom(self.dag_id, self.run_id, "job", key)

    def log(self, try_number: int = 1) -> str:
        return self.airflow.log(self.dag_id, self.run_id, "job", try_number)

    def says(self, text: str, try_number: int = 1) -> str:
        """Wait until the task's log has ``text``; the log."""

        def look() -> str:
            if self.task()["try_number"] < try_number:
                return ""
            log = self.log(try_number)
            return log if text in log else ""

        return eventually(look, f"{self.dag_id}: the log does not say {text!r}")

    def mark(self, state: str) -> None:
        path = f"dags/{self.dag_id}/dagRuns/{self.run_id}/taskInstances/job"
        self.airflow.api("PATCH", path, json={"new_state": state})

    def clear(self) -> None:
        body = {"dry_run": False, "dag_run_id": self.run_id, "task_ids": ["job"], "only_failed": False}
        self.airflow.api("POST", f"dags/{self.dag_id}/clearTaskInstances", json=body)


#: The runs, by what the tests call them, and their DAGs.
RUNS = {
    "returns": "job_returns",
    "says nothing": "job_says_nothing",
    "fails": "job_fails",
    "missing": "job_missing",
    "without connection": "job_without_connection",
    "killed": "job_lasts",
    "marked failed": "job_lasts",
    "marked success": "job_lasts",
    "cleared": "job_lasts",
    "in worker": "job_in_worker",
    "still runs": "job_retried",
    "ends meanwhile": "job_retried",
    "dies meanwhile": "job_retried",
    "never starts": "job_never_starts",
}


@pytest.fixture(scope="module")
def asked_before(rest_counter):
    """How often the master had been asked for a driver's status before."""
    return rest_counter.counts["status"]


@pytest.fixture(scope="module")
def first(airflow_stack, asked_before, tmp_path_factory):
    """The run that times out, alone until its driver has begun.

    Its time runs from the submission, and where two cores start fifteen drivers at once, none is there soon.
    """
    folder = tmp_path_factory.mktemp("first")
    run = Run(airflow_stack, "job_times_out", folder / "notes", folder / "go").start()
    run.driver()
    return run


@pytest.fixture(scope="module")
def examples(airflow_stack, first):
    """The runs of every DAG of the example files, by file, started."""
    started: dict[str, list[tuple[str, str]]] = {}
    for name in EXAMPLES:

        def of_file(name: str = name) -> list[str]:
            errors = airflow_stack.api("GET", "importErrors")["import_errors"]
            assert not errors, errors
            known = airflow_stack.api("GET", "dags", params={"limit": 100, "exclude_stale": False})["dags"]
            return [dag["dag_id"] for dag in known if Path(dag["fileloc"]).resolve() == ROOT / "dags" / name]

        dag_ids = eventually(of_file, f"dags/{name} has no DAG")
        started[name] = [(dag_id, airflow_stack.trigger(dag_id)) for dag_id in dag_ids]
    return started


@pytest.fixture(scope="module")
def runs(airflow_stack, first, examples, tmp_path_factory):
    """All other runs, started."""
    folder = tmp_path_factory.mktemp("runs")
    return {
        "times out": first,
        **{
            name: Run(airflow_stack, dag_id, folder / f"{index}.notes", folder / f"{index}.go").start()
            for index, (name, dag_id) in enumerate(RUNS.items())
        },
    }


# Those that somebody interferes with come first, because the others get on by themselves meanwhile.


def test_a_killed_driver_fails_the_task_as_lost_and_says_since_when(runs):
    run = runs["killed"]
    pid = run.driver()
    run.is_in("deferred")
    # Progress is shown while nothing holds a worker slot: by the trigger.
    run.says(" 50% half way")
    assert run.task()["state"] == "deferred"
    killed = time.time()
    os.kill(pid, signal.SIGKILL)
    assert run.ended() == "failed"
    log = run.log()
    assert "The broker has lost the driver's connection; waiting whether it comes back." in log
    found = re.search(
        r"JobLost: \S+lasting\.py \(job \w+, driver-\S+\) is lost: .* since (\S+ \S+) UTC, .* 1 s\. ", log
    )
    assert found, log
    since = datetime.strptime(found[1], "%Y-%m-%d %H:%M:%S").replace(tzinfo=timezone.utc).timestamp()
    # The broker writes whole seconds.
    assert int(killed) <= since <= time.time()
    assert "look at the driver's log on the Spark worker" in log


@pytest.mark.parametrize("how", ["marked failed", "marked success", "cleared"])
def test_a_job_is_asked_to_stop_when_its_deferred_task_is(runs, how):
    run = runs[how]
    pid = run.driver()
    run.is_in("deferred")
    run.says(" 50% half way")
    if how == "cleared":
        run.clear()
    else:
        run.mark(how.split()[1])
    # Interrupted by the cancel event, inside the application; a kill would leave no note.
    eventually(lambda: "interrupted 1" in run.lived_through(), f"{how}: {run.lived_through()}")
    eventually(lambda: not Path(f"/proc/{pid}").exists(), f"{how}: the driver still runs")
    if how == "cleared":
        run.driver(2)
        run.is_in("deferred")
        run.go.touch()
        assert run.ended() == "success"
        assert run.lived_through() == ["begin 1", "interrupted 1", "begin 2", "end 2"]
        assert run.result() == {"pid": run.driver(2)}
    else:
        assert run.ended() == how.split()[1]
        assert run.task()["state"] == how.split()[1]
        assert run.lived_through() == ["begin 1", "interrupted 1"]


def kill_the_worker(run: Run) -> None:
    """SIGKILL the process that waits for the job, as a node that goes away does."""
    run.driver()
    run.says(" 50% half way")
    os.kill(run.task()["pid"], signal.SIGKILL)
    run.is_in("up_for_retry")


def test_a_retry_finds_what_ended_dead_or_living(runs):
    living, ending, dying = runs["still runs"], runs["ends meanwhile"], runs["dies meanwhile"]
    for run in (ending, dying, living):
        kill_the_worker(run)
        if run is ending:
            run.go.touch()
        if run is dying:
            os.kill(run.driver(), signal.SIGKILL)
    living.says("of an earlier try still runs; waiting for it.", try_number=2)
    living.go.touch()
    dying.driver(2)
    dying.go.touch()
    for run in (living, ending, dying):
        assert run.ended() == "success", run.log(2)
    assert "of an earlier try has succeeded meanwhile." in ending.log(2)
    assert "of an earlier try is over (lost); submitting anew." in dying.log(2)
    assert living.lived_through() == ending.lived_through() == ["begin 1", "end 1"]
    assert dying.lived_through() == ["begin 1", "begin 2", "end 2"]
    assert living.result() == {"pid": living.driver(1)}
    assert dying.result() == {"pid": dying.driver(2)}


def test_waiting_in_the_worker(runs):
    run = runs["in worker"]
    run.driver()
    run.says(" 50% half way")
    assert run.task()["state"] == "running"
    run.go.touch()
    assert run.ended() == "success"
    assert run.result() == {"pid": run.driver()}


def test_the_result_is_the_xcom(runs):
    run = runs["returns"]
    assert run.ended() == "success"
    assert run.result() == ["job_returns", "a b"]
    details = run.result("spark_job")
    assert details["submission_id"].startswith("driver-")
    assert details["resumed_after"] > 0
    assert run.task()["try_number"] == 1


def test_no_result_no_xcom(runs):
    run = runs["says nothing"]
    assert run.ended() == "success"
    assert run.result() is None
    assert "The application set no result, so there is no XCom." in run.log()


def test_a_failed_job_shows_the_drivers_traceback(runs):
    run = runs["fails"]
    assert run.ended() == "failed"
    log = run.log()
    assert "The driver's traceback:" in log
    assert "LookupError: the cause, with \N{SNOWMAN}" in log
    assert re.search(r'File "\S+/tests/applications/ending\.py", line \d+, in fail', log), log
    assert re.search(
        r"JobFailed: \S+ending\.py \(job \w+, driver-\S+\) failed: RuntimeError: what the user sees", log
    ), log


def test_an_application_that_is_not_there(runs):
    run = runs["missing"]
    assert run.ended() == "failed"
    assert "there-is-no-such.py' does not exist on" in run.log()


def test_a_connection_that_is_not_there(runs):
    run = runs["without connection"]
    assert run.ended() == "failed"
    assert re.search(r"ConfigurationError: There is no connection 'nowhere'", run.log()), run.log()


def test_a_job_that_takes_longer_than_the_execution_timeout_is_stopped(runs):
    run = runs["times out"]
    assert run.ended() == "failed"
    log = run.log()
    assert "has not ended within execution_timeout=0:01:00; it was stopped." in log
    assert run.lived_through() == ["begin 1", "interrupted 1"]


def test_a_job_that_never_starts_says_why(runs):
    run = runs["never starts"]
    assert run.ended() == "failed"
    log = run.log()
    assert "no driver has reported within start_timeout=12 s." in log
    assert "The Spark master says SUBMITTED" in log
    assert "No Spark worker had room for it" in log
    assert run.lived_through() == []


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example(examples, airflow_stack, name):
    assert examples[name], f"dags/{name} has no DAG"
    for dag_id, run_id in examples[name]:
        state = airflow_stack.wait_for_run(dag_id, run_id, timeout=PATIENCE)
        tasks = airflow_stack.api("GET", f"dags/{dag_id}/dagRuns/{run_id}/taskInstances")["task_instances"]
        logs = [
            airflow_stack.log(dag_id, run_id, task["task_id"])[-3000:] for task in tasks if task["state"] == "failed"
        ]
        assert state == "success", "\n".join([dag_id, *logs])


def test_the_trained_model_is_good(examples, airflow_stack):
    ((dag_id, run_id),) = examples["train_digits.py"]
    airflow_stack.wait_for_run(dag_id, run_id, timeout=PATIENCE)
    result = airflow_stack.xcom(dag_id, run_id, "train")
    assert result["accuracy"] > 0.9
    assert len(result["folds"]) == 5
    assert Path(result["model"]).is_dir()
    log = airflow_stack.log(dag_id, run_id, "train")
    assert re.search(r" 67% fold 4 of 5 accuracy=0\.\d+ mean=0\.\d+", log), log
    assert airflow_stack.xcom(dag_id, run_id, "report").startswith("accuracy 0.9")


def test_nothing_is_left_and_nothing_was_polled(
    *, runs, examples, airflow_stack, broker, spark_cluster, rest_counter, asked_before
):
    for run in runs.values():
        run.ended()
    for started in examples.values():
        for dag_id, run_id in started:
            airflow_stack.wait_for_run(dag_id, run_id, timeout=PATIENCE)

    def left() -> set[str]:
        return {queue for queue in broker.queues() if re.search(r"\.(job|will|control)\.", queue)}

    eventually(lambda: not left(), f"queues: {left()}")
    applications = str(ROOT / "tests" / "applications")
    eventually(lambda: not spark_cluster.driver_pids(applications), "drivers still run")
    # Why a job never started, when it is given up; and at a retry that finds no word of a driver, whether one is on its
    # way. Never while a job runs.
    retries = sum(dag_id == "job_retried" for dag_id in RUNS.values())
    assert 1 <= rest_counter.counts["status"] - asked_before <= 1 + retries
    assert broker.password not in "".join(
        log.read_text(errors="replace") for log in (airflow_stack.directory / "logs").rglob("*.log")
    )
