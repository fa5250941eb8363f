"""One round of chaos: a job, the moments at which it can be hit, and what must be true of it in the end."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
import time
import urllib.request
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import requests

from stack.chaos.parts import Gate, executable, parent, processes, send, threads

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from stack.chaos.parts import Stack

T = TypeVar("T")

#: Seconds after which a round is given up: the longest fault, all tries and their delays fit in, on a busy machine too.
PATIENCE = 600.0
#: Seconds to wait for the moment at which a fault is due.
MOMENT = 180.0
#: Seconds for queues and processes to go after the end, and for connections that linger.
SETTLE = 90.0
#: Threads that a triggerer may have more than after the first round: Python's default executor is filled on demand.
MORE_THREADS = 24
#: The last line of a task's log before its result is handed to Airflow (SparkJobOperator._succeed).
READ_LINE = "succeeded; this task runs again"
#: What a scheduler logs when a push has outrun it (docs/facts of the early event: triggers/hold_off.py).
OUTRUN = "state attribute is queued"


class Missed(Exception):
    """The moment for a fault did not come, so the round shows nothing."""


@dataclass
class Expected:
    """What the rules say of a round's end.

    :param states: of the DAG run.
    :param ends: how often the application may have come to its end, at least and at most.
    :param tries: likewise for the tries.
    :param queues_may_stay: where the worker dies between the stored success and its clean-up, nobody is left to delete
        the queues: they expire.
    :param text: must be in the task's log.
    :param not_text: must not be.
    """

    states: tuple[str, ...] = ("success",)
    ends: tuple[int, int] = (1, 1)
    tries: tuple[int, int] = (1, 1)
    queues_may_stay: bool = False
    text: str = ""
    not_text: str = ""


class Held(Gate):
    """Holds a round's first submission: before it reaches the master, or its answer. A context manager.

    :param answer: hold the answer instead of the request.
    """

    def __init__(self, played: Round, *, answer: bool = False) -> None:
        self._round = played
        self._holds_answer = answer
        self._reached, self._released = threading.Event(), threading.Event()
        self._passes = True

    def __enter__(self) -> Held:
        self._round.stack.gates[str(self._round.notes)] = self
        return self

    def __exit__(self, *_error: object) -> None:
        self._released.set()
        self._round.stack.gates.pop(str(self._round.notes), None)

    def on_request(self, body: bytes) -> bytes | None:
        """Hold it, unless it is the answer that is to be held."""
        return body if self._holds_answer or self._hold() else None

    def on_answer(self) -> bool:
        """Likewise."""
        return not self._holds_answer or self._hold()

    def _hold(self) -> bool:
        if self._reached.is_set():
            return True
        self._reached.set()
        self._released.wait(PATIENCE)
        return self._passes

    def wait(self) -> None:
        """Wait until a submission is held.

        :raises Missed: there is none.
        """
        if not self._reached.wait(MOMENT):
            raise Missed("nothing was submitted")

    def release(self, *, passes: bool = True) -> None:
        """Let it go on, or with ``passes=False`` reset its connection."""
        self._passes = passes
        self._released.set()


@dataclass
class Round:
    """A job that is to be hit.

    :param chance: the round's own source of randomness: the same for the same seed and number.
    """

    stack: Stack
    number: int
    chance: random.Random
    #: Seconds that the broker is away where it is away for long.
    away: float = 75.0
    expected: Expected = field(default_factory=Expected)
    dag_id: str = "chaos"
    run_id: str = ""
    seconds: float = 0.0
    deferred_at: float = 0.0
    told: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        folder = self.stack.directory / "notes"
        folder.mkdir(exist_ok=True)
        self.notes: Path = folder / f"round-{self.number}-{time.time_ns()}.txt"
        self.notes.touch()
        self._scheduler_log = self.stack.airflow.components["scheduler"].log
        self._scheduler_log_began = self._scheduler_log.stat().st_size
        self.began = time.monotonic()

    def say(self, text: str) -> None:
        """Note what was done, for whoever reads of a failure."""
        self.told.append(f"{time.monotonic() - self.began:6.1f} s  {text}")

    def uniform(self, least: float, most: float) -> float:
        """A random number of the round's own."""
        return self.chance.uniform(least, most)

    # The job ---------------------------------------------------------------------------------------------------------

    def start(self, seconds: float, dag_id: str = "chaos") -> None:
        """Trigger the DAG: its job computes for ``seconds``."""
        self.seconds, self.dag_id = seconds, dag_id
        self.run_id = self.stack.airflow.trigger(dag_id, file=str(self.notes), seconds=seconds)
        self.say(f"triggered a job of {seconds:.1f} s")

    def task(self) -> dict[str, Any]:
        """The task instance."""
        return self.stack.airflow.task(self.dag_id, self.run_id, "job")

    def noted(self, what: str) -> list[str]:
        """The tokens of the drivers that noted ``begin`` or ``end``, in order."""
        return [line.split()[1] for line in self.notes.read_text().splitlines() if line.startswith(what)]

    @property
    def log_folder(self) -> Path:
        """Where the task's log files are."""
        logs = self.stack.airflow.directory / "logs"
        return logs / f"dag_id={self.dag_id}" / f"run_id={self.run_id}" / "task_id=job"

    def log(self, attempt: int | None = None) -> str:
        """All that the task and its triggers have logged, of one try or of all."""
        pattern = "attempt=*.log*" if attempt is None else f"attempt={attempt}.log*"
        return "\n".join(path.read_text(errors="replace") for path in sorted(self.log_folder.glob(pattern)))

    # Its processes ---------------------------------------------------------------------------------------------------

    def drivers(self) -> list[int]:
        """The Python processes of its drivers."""
        return [pid for pid in processes(str(self.notes)) if executable(pid).startswith("python")]

    def jvms(self) -> list[int]:
        """The JVMs of its drivers."""
        return [pid for pid in processes(str(self.notes)) if executable(pid) == "java"]

    def task_processes(self) -> list[int]:
        """The process that runs the task's own code in its present try, if there is one."""
        return processes(f"airflow worker -- {self.task()['id']}")

    def kill_worker(self) -> None:
        """SIGKILL the task's process, the supervisor of it, or both.

        :raises Missed: there is none.
        """
        found = self.task_processes()
        if not found:
            raise Missed("there was no worker process to kill")
        which = self.chance.choice(["task", "supervisor", "both"])
        targets = {
            "task": found,
            "supervisor": [parent(pid) for pid in found],
            "both": [*(parent(pid) for pid in found), *found],
        }[which]
        send(targets, signal.SIGKILL)
        self.say(f"killed the worker: {which}")

    def until_no_driver(self) -> None:
        """Wait until no driver of the job runs, or for :data:`SETTLE` seconds: the end of the round tells."""
        deadline = time.monotonic() + SETTLE
        while self.drivers() and time.monotonic() < deadline:
            time.sleep(0.1)

    # Moments ---------------------------------------------------------------------------------------------------------

    def wait(self, look: Callable[[], T | None], what: str, *, every: float = 0.05) -> T:
        """Wait until ``look`` finds something, and return that.

        :raises Missed: it does not come, or the run has ended.
        """
        deadline, looked = time.monotonic() + MOMENT, time.monotonic()
        while not (found := look()):
            now = time.monotonic()
            if now > deadline:
                raise Missed(f"there was no {what}")
            if now - looked > 5:
                looked = now
                if self._is_over() and not look():
                    raise Missed(f"the run ended before there was {what}")
            time.sleep(every)
        return found

    def _is_over(self) -> bool:
        return self.stack.airflow.run_state(self.dag_id, self.run_id) in ("success", "failed")

    def state_is(self, *states: str) -> Callable[[], bool]:
        """Looks whether the task is in one of ``states``."""
        return lambda: str(self.task()["state"]) in states

    def until_deferred(self) -> None:
        """Wait until the task is deferred."""
        self.wait(self.state_is("deferred"), "deferral", every=0.2)
        self.deferred_at = time.time()

    def until_watched(self) -> None:
        """Wait until a triggerer has the task's trigger: Airflow tells nobody of what is done to the task before."""
        self.until_deferred()
        self.wait(lambda: self.task()["triggerer_job"] is not None, "triggerer", every=0.2)
        time.sleep(2)  # until it runs there

    def until_resuming(self) -> None:
        """Wait until the worker process that reads the result has begun."""
        self.until_deferred()
        self.wait(lambda: str(self.task()["state"]) != "deferred", "resumption", every=0.1)
        self.wait(self.task_processes, "worker process", every=0.02)

    def until(self, stage: str) -> None:
        """Wait for a stage of the job.

        ``worker``: its process has begun. ``jvm``: the driver's JVM has. ``start``: likewise, and up to 3 s later, while
        Python starts. ``begin``: the application begins. ``middle``. ``end``: the application has come to its end, and
        the driver is about to say so. ``resume``: the worker that reads the result has begun.
        """
        if stage == "worker":
            self.wait(self.task_processes, "worker process", every=0.02)
        elif stage in ("jvm", "start"):
            self.wait(self.jvms, "JVM")
            time.sleep(self.uniform(0, 3) if stage == "start" else 0)
        elif stage == "python":
            self.wait(self.drivers, "driver")
        elif stage in ("begin", "middle"):
            self.wait(lambda: self.noted("begin"), "beginning")
            time.sleep(self.uniform(0.1, 0.7) * self.seconds if stage == "middle" else 0)
        elif stage == "end":
            self.wait(lambda: self.noted("end"), "end", every=0.005)
        elif stage == "resume":
            self.until_resuming()
        else:
            raise ValueError(stage)
        self.say(f"at {stage}")

    @contextlib.contextmanager
    def at(self, stage: str) -> Iterator[None]:
        """Wait for a stage, those of submission included; a submission is held as long as the context is open.

        ``before``: before the DAG is triggered. ``submit``: the submission is on its way to the master.
        """
        if stage == "before":
            yield
            self.start(self.seconds)
            return
        if stage == "submit":
            with Held(self) as gate:
                self.start(self.seconds)
                gate.wait()
                self.say("at submit")
                yield
            return
        self.start(self.seconds)
        self.until(stage)
        yield

    # The end ---------------------------------------------------------------------------------------------------------

    def problems(self) -> list[str]:
        """Wait for the run's end and say what is not as it must be."""
        expected, found = self.expected, []
        deadline = time.monotonic() + PATIENCE
        state = "unknown"
        while state not in ("success", "failed"):
            if time.monotonic() > deadline:
                found.append(f"the run is still {state}, its task {self.task()['state']}, after {PATIENCE:g} s")
                break
            time.sleep(0.5)
            with contextlib.suppress(requests.ConnectionError):
                state = self.stack.airflow.run_state(self.dag_id, self.run_id)
        self.say(f"the run is {state}")
        if state not in expected.states:
            found.append(f"the run is {state}, not {' or '.join(expected.states)}")
        ends, tries = self.noted("end"), int(self.task()["try_number"])
        if not expected.ends[0] <= len(ends) <= expected.ends[1]:
            found.append(f"{len(ends)} drivers ran to their end, not {_range(expected.ends)}")
        if not expected.tries[0] <= tries <= expected.tries[1]:
            found.append(f"{tries} tries, not {_range(expected.tries)}")
        result = self.stack.airflow.xcom(self.dag_id, self.run_id, "job")
        wanted = bool(ends) and state == "success" and expected.ends[1] > 0
        # Where a second run is right either may have been first to say so.
        right = ends[-1:] if expected.ends[0] == expected.ends[1] else ends
        if wanted and (not isinstance(result, dict) or result.get("token") not in right):
            found.append(f"the result is {result!r}, not that of {' or '.join(right)}")
        if not wanted and result is not None and state == "success":
            found.append(f"the result is {result!r}, and no driver has ended")
        log = self.log()
        if expected.text and expected.text not in log:
            found.append(f"the task's log does not say {expected.text!r}")
        if expected.not_text and expected.not_text in log:
            found.append(f"the task's log says {expected.not_text!r}")
        with self._scheduler_log.open(errors="replace") as file:
            file.seek(self._scheduler_log_began)
            outrun = any(OUTRUN in line and self.run_id in line for line in file)
        if outrun:
            self.say("the scheduler was outrun")
            if expected.tries == (1, 1):
                found.append("an event outran the scheduler")
        return found

    def processes_left(self) -> list[str]:
        """What of the job's processes is there."""
        left = []
        if pids := processes(str(self.notes)):
            left.append(f"processes of drivers are left: {pids}")
        if self.run_id and (pids := self.task_processes()):
            left.append(f"worker processes are left: {pids}")
        return left

    def may_stay(self, queue: str) -> bool:
        """Whether a queue may be left: it is one of a job of this round, and its rules allow it."""
        return self.expected.queues_may_stay and queue.rpartition(".")[2] in self.log()

    def clean(self) -> None:
        """End what the round has left."""
        send(processes(str(self.notes)), signal.SIGKILL)


def left_behind(stack: Stack, rounds: list[Round], most_threads: int | None) -> list[str]:
    """Wait until nothing is left of rounds that have ended, and say what still is.

    :param most_threads: that the triggerers may have.
    """
    deadline = time.monotonic() + SETTLE
    while True:
        left = [line for played in rounds for line in played.processes_left()]
        if count := _active_drivers(stack):
            left.append(f"the Spark master counts {count} drivers as active")
        for name, line in (("drivers", stack.driver_line), ("triggerers", stack.triggerer_line)):
            if count := line.open:
                left.append(f"{count} connections are left on the line of the {name}")
        count = sum(threads(triggerer) for triggerer in stack.triggerers)
        if most_threads is not None and count > most_threads:
            left.append(f"the triggerers have {count} threads, more than {most_threads}")
        if not left or time.monotonic() > deadline:
            queues = stack.job_queues()
            allowed = {queue for queue in queues if any(played.may_stay(queue) for played in rounds)}
            stack.delete_queues(allowed)
            if queues - allowed:
                left.append(f"queues are left: {sorted(queues - allowed)}")
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(1)


def _active_drivers(stack: Stack) -> int:
    try:
        with urllib.request.urlopen(f"{stack.spark.web_url}/json/", timeout=5) as answer:
            return len(json.load(answer)["activedrivers"])
    except (OSError, ValueError):
        return 0


def _range(allowed: tuple[int, int]) -> str:
    return str(allowed[0]) if allowed[0] == allowed[1] else f"{allowed[0]} to {allowed[1]}"
