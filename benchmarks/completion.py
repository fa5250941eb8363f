"""What does it cost Airflow to run a Spark job, and how soon does it know that the job has ended or died?

    .venv/bin/python -m benchmarks.completion [--seconds 60] [--json]

The same application, which knows nothing of who runs it, on a real Spark standalone cluster: by ``SparkSubmitOperator``
with its defaults (client mode, the only one it has for Python there) and by ``SparkJobOperator`` with its. Then again,
with the driver's Python process killed (SIGKILL) half-way.

``end_to_downstream_s``: from the application's last line to the start of the task behind it. ``slot_s``: how long a worker
process existed for the task. ``cpu_s``: of everything on the Airflow side (scheduler, triggerer, DAG processor, API
server, workers and what they start) from the trigger of the DAG to the start of the task behind it; Airflow's own share
is in the row of an idle Airflow. ``processes``: started on the Airflow side meanwhile, those that live shorter than 50 ms
not counted. ``status_calls``: how often Spark was asked what has become of the job. ``kill_to_failed_s``: from SIGKILL to
the task's failure.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.tables import show
from stack.airflow import Airflow
from stack.broker import Broker
from stack.http_counter import RestCounter
from stack.processes import command_line, cpu_seconds
from stack.spark import SparkCluster

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

ROOT = Path(__file__).parent.parent
SPARK_PYTHON = ROOT / ".venv-spark" / "bin" / "python"
#: Seconds between two looks at Airflow's processes.
INTERVAL = 0.05

#: DAG, and what is run in it.
OPERATORS = {
    "completion_submit": "SparkSubmitOperator",
    "completion_job": "SparkJobOperator",
    "completion_job_soon": "SparkJobOperator, lost_grace=1",
}


class Parts(NamedTuple):
    """What runs."""

    airflow: Airflow
    spark: SparkCluster
    counter: RestCounter


class Watcher:
    """Looks at all processes below some others: how many there were, which of them were workers for how long, CPU."""

    def __init__(self, roots: Iterable[int]) -> None:
        self._roots = list(roots)
        self._over = threading.Event()
        self._seen = set(self._tree())
        self._started: set[int] = set()
        self.workers: dict[str, float] = {}
        self._cpu = self._cpu_now()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        self.cpu_s = self._cpu_now() - self._cpu
        self.processes = len(self._started)

    def _look(self) -> None:
        last = time.monotonic()
        while not self._over.wait(INTERVAL):
            now = time.monotonic()
            for pid in self._tree():
                if pid not in self._seen:
                    self._seen.add(pid)
                    self._started.add(pid)
                if pid in self._started and (title := command_line(pid)).startswith("airflow worker -- "):
                    task = title.split()[3]
                    self.workers[task] = self.workers.get(task, 0.0) + now - last
            last = now

    def _tree(self) -> list[int]:
        found = list(self._roots)
        for pid in found:
            with contextlib.suppress(OSError):
                for thread in Path(f"/proc/{pid}/task").iterdir():
                    found += map(int, (thread / "children").read_text().split())
        return found

    def _cpu_now(self) -> float:
        """CPU-seconds of all, those included that have ended and were waited for."""
        seconds = 0.0
        for pid in self._tree():
            with contextlib.suppress(OSError):
                seconds += cpu_seconds(pid, with_children=True)
        return seconds


def roots(airflow: Airflow) -> list[int]:
    return [part._leash.pid for part in airflow.components.values() if part._leash is not None]


def drivers(airflow: Airflow, spark: SparkCluster) -> list[int]:
    """The Python processes of the application, wherever its driver runs."""
    below = [*airflow.components["scheduler"].pids(), *spark.worker.pids()]
    lines = {pid: command_line(pid).split() for pid in below}
    return [
        pid
        for pid, line in lines.items()
        if line and Path(line[0]).name.startswith("python") and any(word.endswith("compute.py") for word in line)
    ]


def seconds_of(text: str) -> float:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def run(dag_id: str, parts: Parts, folder: Path, seconds: float, *, kill: bool) -> dict[str, Any]:
    """One run of a DAG; its row."""
    airflow, spark, counter = parts
    notes = folder / f"{dag_id}{'-killed' if kill else ''}"
    notes.mkdir()
    airflow.wait_for_dag(dag_id)
    counter.counts.clear()
    killed = 0.0
    with Watcher(roots(airflow)) as watcher:
        run_id = airflow.trigger(dag_id, seconds=seconds, notes=str(notes))
        deadline = time.monotonic() + 180
        if kill:
            while not (notes / "started").exists() and time.monotonic() < deadline:
                time.sleep(0.1)
            time.sleep(seconds / 2)
            killed = time.time()
            for pid in drivers(airflow, spark):
                os.kill(pid, signal.SIGKILL)
        else:
            while not (notes / "ended").exists() and time.monotonic() < deadline + seconds:
                time.sleep(0.5)
        task = "run" if kill else "downstream"
        state = airflow.wait_for_task(dag_id, run_id, task, "success", "failed", "upstream_failed", timeout=180)
    instance = airflow.task(dag_id, run_id, "run")
    row: dict[str, Any] = {
        "operator": OPERATORS[dag_id],
        "outcome": f"killed: {instance['state']}" if kill else state,
        "end_to_downstream_s": None,
        "slot_s": watcher.workers.get(instance["id"]),
        "cpu_s": watcher.cpu_s,
        "processes": watcher.processes,
        "status_calls": counter.counts["status"],
        "kill_to_failed_s": None,
    }
    if kill:
        row["kill_to_failed_s"] = seconds_of(instance["end_date"]) - killed
    elif state == "success":
        start = seconds_of(airflow.task(dag_id, run_id, "downstream")["start_date"])
        row["end_to_downstream_s"] = start - float((notes / "ended").read_text())
    return row


def idle(airflow: Airflow, seconds: float) -> dict[str, Any]:
    """What Airflow costs while it does nothing, for as long as a run takes."""
    with Watcher(roots(airflow)) as watcher:
        time.sleep(seconds)
    return {
        "operator": "none: Airflow alone",
        "outcome": f"idle {seconds:g} s",
        "end_to_downstream_s": None,
        "slot_s": 0.0,
        "cpu_s": watcher.cpu_s,
        "processes": watcher.processes,
        "status_calls": 0,
        "kill_to_failed_s": None,
    }


def ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """How many times more the first operator takes than the second, per outcome."""
    found = []
    for outcome in ("success", "killed: failed"):
        of_outcome = {row["operator"]: row for row in rows if row["outcome"] == outcome}
        first, second = (of_outcome.get(OPERATORS[dag]) for dag in ("completion_submit", "completion_job"))
        if first is None or second is None:
            continue
        row: dict[str, Any] = {"operator": "SparkSubmitOperator / SparkJobOperator", "outcome": outcome}
        for name in ("end_to_downstream_s", "slot_s", "cpu_s", "processes", "kill_to_failed_s"):
            row[name] = first[name] / second[name] if first[name] and second[name] else None
        found.append(row)
    return found


def spark_home() -> str:
    done = subprocess.run(
        [SPARK_PYTHON, "-c", "import os, pyspark; print(os.path.dirname(pyspark.__file__))"],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long the job computes")
    parser.add_argument("--dags", nargs="+", choices=OPERATORS, default=list(OPERATORS))
    parser.add_argument("--json", action="store_true", help="one JSON object a row")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (
            Broker(folder / "broker") as broker,
            SparkCluster(folder / "spark", SPARK_PYTHON) as spark,
            RestCounter(spark.rest_port) as counter,
            Airflow(
                folder / "airflow",
                dags=ROOT / "benchmarks" / "dags",
                connections={
                    "rabbitmq_default": broker.connection(),
                    "spark_default": spark.connection(counter.port),
                    "spark_submit": json.dumps({"conn_type": "spark", "host": "spark://127.0.0.1", "port": spark.port}),
                },
                environment={
                    "PATH": f"{os.environ['PATH']}:{SPARK_PYTHON.parent}",
                    "SPARK_HOME": spark_home(),
                    "SPARK_LOCAL_IP": "127.0.0.1",
                    "PYSPARK_PYTHON": str(SPARK_PYTHON),
                },
            ) as airflow,
        ):
            rows.append(idle(airflow, options.seconds))
            if options.json:
                show(rows, as_json=True)
            for kill in (False, True):
                for dag_id in options.dags:
                    if dag_id == "completion_job_soon" and not kill:
                        continue
                    rows.append(run(dag_id, Parts(airflow, spark, counter), folder, options.seconds, kill=kill))
                    if options.json:
                        show(rows[-1:], as_json=True)
    if not options.json:
        show([*rows, *ratios(rows)], as_json=False)
    wrong = [
        row for row in rows if row["outcome"] not in ("success", "killed: failed") and "idle" not in row["outcome"]
    ]
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
