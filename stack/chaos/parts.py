"""The real parts that chaos breaks: brokers, clusters and Airflows of :mod:`stack`, and ways to hit one piece of them."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from stack.airflow import Airflow
from stack.broker import Broker
from stack.http_counter import RestCounter
from stack.processes import command_line
from stack.proxy import Proxy
from stack.spark import SparkCluster

if TYPE_CHECKING:
    from contextlib import ExitStack

    from stack.processes import Process

ROOT = Path(__file__).parents[2]
APPLICATION = ROOT / "tests" / "chaos" / "application.py"
DAGS = ROOT / "tests" / "chaos" / "dags"
#: Room for the drivers of several rounds, and for those of tries that were given up.
CORES, MEMORY = 16, "12g"
#: The kinds of queues that belong to one job.
OF_JOBS = re.compile(r"\.(job|will|control)\.[0-9a-f]{32}$")


class Gate:
    """What a submission meets on its way; this one lets it through."""

    def on_request(self, body: bytes) -> bytes | None:
        """What to pass on; None resets the connection."""
        return body

    def on_answer(self) -> bool:
        """Whether to pass the answer on; False resets the connection."""
        return True


class Stack:
    """Airflow with two triggerers, a TLS broker, a Spark cluster, and what can be done to them.

    Between them stand a TCP proxy for drivers and workers, one for the triggerers, and an HTTP proxy in front of Spark's
    REST server.

    :param closing: stops everything when it closes.
    """

    def __init__(self, directory: Path, closing: ExitStack) -> None:
        self.directory = directory
        self.broker = Broker(directory / "broker")
        closing.callback(self.broker.stop)
        self.broker.launch()
        self.spark = SparkCluster(
            directory / "spark", ROOT / ".venv-spark" / "bin" / "python", cores=CORES, memory=MEMORY
        )
        closing.callback(self.spark.stop)
        # What a service manager does: a worker that dies is started again, and its drivers are not killed with it.
        worker = self.spark.worker
        worker.command = ["/bin/sh", "-c", 'while :; do "$@"; sleep 1; done', "spark-worker", *worker.command]
        self.spark.launch()
        self.driver_line = closing.enter_context(Proxy(self.broker.port))
        self.triggerer_line = closing.enter_context(Proxy(self.broker.port))
        self.rest = closing.enter_context(RestCounter(self.spark.rest_port))
        #: What happens to submissions on their way, by a text in their body.
        self.gates: dict[str, Gate] = {}
        self._passing = threading.local()
        self.rest.on_request, self.rest.on_answer = self._on_request, self._on_answer
        self.airflow = Airflow(
            directory / "airflow",
            dags=DAGS,
            connections={
                "rabbitmq_default": self._connection(self.driver_line),
                "spark_default": self.spark.connection(self.rest.port),
            },
            environment={
                "CHAOS_APPLICATION": str(APPLICATION),
                "PYTHONPATH": str(ROOT),
                # Otherwise a worker that is gone is missed only after five minutes.
                "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "20",
                "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
                "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "15",
                # A slot of the executor whose process was killed is not given out again.
                "AIRFLOW__CORE__PARALLELISM": "24",
            },
        )
        self._set_line(self.airflow.components["triggerer"])
        closing.callback(self.airflow.stop)
        self.airflow.launch()
        self.broker.wait()
        self.broker_version = self.broker.version
        self.spark.wait()
        self.airflow.wait()
        second = self.airflow.add_triggerer()
        second.stop()
        self._set_line(second)
        second.start()
        self.triggerers = [self.airflow.components["triggerer"], second]
        for dag_id in ("chaos", "chaos_timeout"):
            self.airflow.wait_for_dag(dag_id)

    def _set_line(self, triggerer: Process) -> None:
        triggerer.environment["AIRFLOW_CONN_RABBITMQ_DEFAULT"] = self._connection(self.triggerer_line)

    def _connection(self, line: Proxy) -> str:
        return self.broker.connection().replace(f":{self.broker.port}/", f":{line.port}/")

    # Spark -----------------------------------------------------------------------------------------------------------

    def _on_request(self, what: str, body: bytes) -> bytes | None:
        gates = [gate for text, gate in self.gates.items() if text.encode() in body] if what == "create" else []
        self._passing.gate = gates[0] if gates else None
        return gates[0].on_request(body) if gates else body

    def _on_answer(self, _what: str) -> bool:
        gate: Gate | None = self._passing.gate
        return gate is None or gate.on_answer()

    # The broker ------------------------------------------------------------------------------------------------------

    def job_queues(self) -> set[str]:
        """The queues of jobs."""
        return {name for name in self.broker.queues() if OF_JOBS.search(name)}

    def delete_queues(self, names: set[str]) -> None:
        """Delete queues, after a round that may leave some."""
        for name in names:
            self.broker.delete_queue(name)

    def set_alarm(self, *, on: bool) -> None:
        """Raise or end a memory alarm: publishers are blocked while it lasts."""
        self.broker.set_alarm(on=on)

    def set_delivery_timeout(self, seconds: float, interval: float) -> None:
        """Set the delivery timeout, and how often it is looked at, of channels that are opened from now on."""
        self.broker.set_option("consumer_timeout", round(seconds * 1000))
        self.broker.set_option("channel_tick_interval", round(interval * 1000))

    # Airflow ---------------------------------------------------------------------------------------------------------

    def freeze(self, process: Process) -> None:
        """SIGSTOP a component and all it has started."""
        process.signal(signal.SIGSTOP)

    def thaw(self, process: Process) -> None:
        """SIGCONT it."""
        process.signal(signal.SIGCONT)

    def kill(self, process: Process) -> None:
        """SIGKILL a component and all it has started, at once."""
        process.signal(signal.SIGKILL)
        process.stop()

    def waiting_triggerer(self, log_folder: Path) -> Process | None:
        """The triggerer that waits for a task: the one that has the task's log open."""
        for triggerer in self.triggerers:
            for pid in triggerer.pids():
                if any(str(log_folder) in name for name in _open_files(pid)):
                    return triggerer
        return None

    def heal(self) -> None:
        """Undo whatever a round has left broken."""
        for line in (self.driver_line, self.triggerer_line):
            line.restore()
        for triggerer in self.triggerers:
            self.thaw(triggerer)
            if not triggerer.is_running:
                triggerer.stop()
                triggerer.start()
        self.spark.worker.signal(signal.SIGCONT)
        self.spark.wait()
        if not self.broker.process.is_running:
            self.broker.start()
        self.broker.resume()


def _open_files(pid: int) -> list[str]:
    names = []
    with contextlib.suppress(OSError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                names.append(str(link.readlink()))
    return names


def processes(containing: str) -> list[int]:
    """All processes whose command line has ``containing`` in it: an id or a path that no other process has."""
    own = os.getpid()
    return [
        pid
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and (pid := int(entry.name)) != own and containing in command_line(pid)
    ]


def executable(pid: int) -> str:
    """The name of the program that a process runs; empty when it is gone."""
    return Path(command_line(pid).split(" ", maxsplit=1)[0]).name


def parent(pid: int) -> int:
    """The parent of a process.

    :raises OSError: it is gone.
    """
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def threads(process: Process) -> int:
    """How many threads a component and all that it has started have."""
    count = 0
    for pid in process.pids():
        with contextlib.suppress(OSError):
            count += len(list(Path(f"/proc/{pid}/task").iterdir()))
    return count


def send(pids: list[int], number: signal.Signals) -> int:
    """Send a signal to those that are still there; how many."""
    sent = 0
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
            sent += 1
    return sent
