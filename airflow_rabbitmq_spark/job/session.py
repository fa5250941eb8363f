"""``open_job()``: what an application says to whoever waits for it.

::

    with open_job() as job:
        job.progress(0.5, "half way", accuracy=0.91)
        job.result({"accuracy": 0.97})

Outside Airflow it is the same object, and it only logs. Reporting never breaks the job: no call raises because a broker
is away. What could not be delivered is counted, and said at the end.
"""

from __future__ import annotations

import contextlib
import logging
import math
import platform
import signal
import sys
import threading
import time
import traceback
from typing import TYPE_CHECKING, Any, Literal

from airflow_rabbitmq_spark import __version__
from airflow_rabbitmq_spark.exceptions import JobCancelled, JobSuperseded
from airflow_rabbitmq_spark.job.events import FINAL, MAX_RESULT_BYTES, Kind, check_result
from airflow_rabbitmq_spark.job.handover import Handover
from airflow_rabbitmq_spark.job.link import Link, process_details

if TYPE_CHECKING:
    from types import FrameType, TracebackType

log = logging.getLogger("airflow_rabbitmq_spark.job")

#: Characters of a traceback that travel. The end of it is what tells.
MAX_TRACEBACK = 32_000
#: Characters of a text that travels.
MAX_TEXT = 4_000
#: Seconds between looks at whether a SparkContext has come up in this process, for its id and its web page.
SPARK_LOOK_INTERVAL = 0.5
#: Seconds to wait at the start until the broker has said that this is the job's driver. The longest answer is that of a
#: driver that meets the connection of a dead one, which the broker gives up after a few heartbeats.
SETTLE_TIMEOUT = 60.0
#: The exit code of a process that SIGTERM ended, as shells count: 128 + 15.
SIGTERM_EXIT_CODE = 143

_LAUNCHER = ("airflow_rabbitmq_spark.job.launcher", "runpy")

_current: JobSession | None = None


def open_job() -> JobSession:
    """Open the session of this process, as a context manager.

    Inside an application that ``SparkJobOperator`` submitted it reports to Airflow; anywhere else it only logs. Inside
    another ``with open_job()`` of the same process it is that one again.

    :raises ConfigurationError: the process was started by Airflow with something that cannot be read.
    """
    if _current is not None:
        return _current
    return JobSession(Handover.from_environment())


class JobSession:
    """One application's run, as it tells of it. Made by :func:`open_job`."""

    def __init__(self, handover: Handover | None) -> None:
        self._handover = handover
        self._link: Link | None = None
        self._depth = 0
        self._result: Any = None
        self._has_result = False
        self._cancel_reason: str | None = None
        self._superseded: JobSuperseded | None = None
        self._terminated = False
        self._began = time.monotonic()
        self._complained: set[str] = set()
        self._old_handlers: dict[signal.Signals, Any] = {}
        #: Set when the session is about to say its last word.
        self.finished = threading.Event()
        self._running = threading.Event()
        self._interruption: str | None = None

    # What an application uses ----------------------------------------------------------------------------------------

    @property
    def job_id(self) -> str | None:
        """The job's id, or None outside Airflow."""
        return None if self._handover is None else self._handover.job.job_id

    @property
    def cancelled(self) -> bool:
        """Whether Airflow has asked the job to stop. A loop of your own can look here and end early."""
        return self._cancel_reason is not None

    def progress(self, fraction: float | None = None, text: str | None = None, **metrics: float) -> None:
        """Tell how far the job is. Returns at once and never raises.

        :param fraction: 0 to 1; None when it is not known.
        :param text: a short text, such as ``"fold 1 of 3"``.
        :param metrics: numbers by name, such as ``accuracy=0.91``. One that is no finite number is left out.
        """
        try:
            self._tell_progress(fraction, text, metrics)
        except Exception as error:  # noqa: BLE001 - whatever the methods of an argument raise: the job goes on
            self._complain("", f"progress: an argument cannot be read ({type(error).__name__}); nothing was reported.")

    def _tell_progress(self, fraction: float | None, text: str | None, metrics: dict[str, float]) -> None:
        data: dict[str, object] = {
            "fraction": self._fraction(fraction),
            "text": None if text is None else _clean(text)[:MAX_TEXT],
            "metrics": self._numbers(metrics),
        }
        shown = "" if data["fraction"] is None else f"{data['fraction']:.0%} "
        log.info("%s%s %s", shown, data["text"] or "", data["metrics"] or "")
        if self._link is not None:
            self._link.post(Kind.PROGRESS, data)

    def result(self, value: Any) -> None:
        """Set what the task returns: its XCom. The last one counts.

        :param value: JSON: texts, finite numbers, true, false, null, lists, and objects with text keys.
        :raises ResultInvalid: it is not JSON, or larger than ``max_result_bytes`` of the operator.
        """
        limit = MAX_RESULT_BYTES if self._handover is None else self._handover.settings.max_result_bytes
        # As it is now: the application may go on to change what it passed, into something that is no JSON too.
        self._result, self._has_result = check_result(value, limit=limit), True
        log.info("result: %.500r", value)

    # The context manager ---------------------------------------------------------------------------------------------

    def __enter__(self) -> JobSession:
        global _current  # noqa: PLW0603 - one process, one job
        self._depth += 1
        if self._depth > 1:
            return self
        _current = self
        self._began = time.monotonic()
        if self._handover is None:
            _log_to_stderr()
            log.info("Not started by Airflow: progress and result are only logged.")
            self._running.set()
            return self
        self._catch_signals()
        self._link = Link(self._handover, on_cancel=self._on_cancel, on_superseded=self._on_superseded)
        # Before the application begins: a driver that Airflow gave up, or a second one, must not begin at all. With no
        # broker to ask it does.
        self._link.settled.wait(max(SETTLE_TIMEOUT, self._link.ghost_timeout + 15))
        if self._superseded is not None:
            self.__exit__(None, None, None)
        started = {**process_details(), "python": platform.python_version(), "version": __version__}
        self._link.post(Kind.STARTED, {**started, **_spark_details()})
        self._running.set()
        if self.cancelled:
            self._interrupt()
        threading.Thread(
            target=self._announce_spark, args=(started,), name="airflow-spark-context", daemon=True
        ).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> Literal[False]:
        global _current  # noqa: PLW0603 - one process, one job
        self._depth -= 1
        if self._depth > 0:
            return False
        _current = None
        self.finished.set()
        if self._link is None:
            return False
        try:
            self._conclude(error)
        finally:
            self._release_signals()
        if self._superseded is not None:
            raise self._superseded from error
        if self._cancel_reason is not None and isinstance(error, KeyboardInterrupt):
            # The interrupt was ours; the reason is what a log should end with.
            raise JobCancelled(f"Stopped: {self._cancel_reason}") from None
        return False

    def _conclude(self, error: BaseException | None) -> None:
        if self._link is None:
            return
        if self._superseded is not None:
            self._link.abandon()
            return
        ending, data = self._ending(error)
        data["duration"] = round(time.monotonic() - self._began, 3)
        self._link.post(ending, data)
        while True:
            try:
                report = self._link.finish()
                break
            except KeyboardInterrupt:
                # A cancel's interrupt that came just too late to stop the application; a person's is obeyed.
                if self._cancel_reason is None or isinstance(error, KeyboardInterrupt):
                    raise
        lost = [event.kind.value for event in report.undelivered]
        if lost or report.shed:
            what = ", ".join(f"{lost.count(name)} {name}" for name in dict.fromkeys(lost)) or "nothing else"
            log.error(
                "Not delivered to Airflow: %s; progress events shed before: %d. %s%s",
                what,
                report.shed,
                f"Reason: {report.problem} " if report.problem else "",
                "Airflow will take this job for lost or never started."
                if any(event.kind in FINAL for event in report.undelivered)
                else "Its end was delivered.",
            )

    def _ending(self, error: BaseException | None) -> tuple[Kind, dict[str, object]]:
        if isinstance(error, SystemExit) and error.code in (None, 0):
            error = None
        # One that looks at `cancelled` and leaves early ends without an error, but also without a result.
        if error is None and (self._cancel_reason is None or self._has_result):
            return Kind.SUCCEEDED, {"result": self._result, "has_result": self._has_result}
        if error is None or self._cancel_reason is not None:
            return Kind.CANCELLED, {"reason": _clean(self._cancel_reason)[:MAX_TEXT]}
        text = _clean("".join(traceback.format_exception(type(error), error, _own_frames(error.__traceback__))))
        data: dict[str, object] = {
            "type": _clean(type(error).__name__)[:MAX_TEXT],
            "message": _message(error),
            "traceback": text[-MAX_TRACEBACK:],
        }
        if self._interruption is not None:
            data["type"], data["message"] = "DriverInterrupted", self._interruption
        if isinstance(error, SystemExit):
            code = error.code
            data["exit_code"] = code if isinstance(code, int) else 1
            data["message"] = f"exited with {'code ' if isinstance(code, int) else ''}{code!s}"[:MAX_TEXT]
            if self._terminated:
                data["type"], data["message"] = "SIGTERM", "the driver was told to terminate (SIGTERM)"
        return Kind.FAILED, data

    # Being stopped ---------------------------------------------------------------------------------------------------

    def _on_cancel(self, reason: str) -> None:
        self._cancel_reason = reason
        log.warning("Asked to stop: %s", reason)
        self._interrupt()

    def _on_superseded(self, error: JobSuperseded) -> None:
        self._superseded = error
        log.error("%s", error)
        self._interrupt()

    def interrupt(self, reason: str) -> None:
        """Stop the application because of something it cannot see, such as the end of its JVM. For the launcher."""
        self._interruption = reason
        log.error("%s", reason)
        self._interrupt()

    def _interrupt(self) -> None:
        # Not before the application begins, and not once it is through: its last word is being delivered.
        if self._running.is_set() and not self.finished.is_set():
            _interrupt_main_thread()

    def _catch_signals(self) -> None:
        """Let SIGTERM end the ``with`` block like ``sys.exit``, so that it is reported, and SIGINT end it at all."""

        def terminate(_number: int, _frame: FrameType | None) -> None:
            self._terminated = True
            raise SystemExit(SIGTERM_EXIT_CODE)

        # Signal handlers belong to the main thread; an application that opens its job elsewhere goes without.
        if threading.current_thread() is threading.main_thread():
            self._old_handlers[signal.SIGTERM] = signal.signal(signal.SIGTERM, terminate)
            if heed_sigint():
                self._old_handlers[signal.SIGINT] = signal.SIG_IGN

    def _release_signals(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._old_handlers.items():
                if handler is not None:
                    signal.signal(number, handler)
            self._old_handlers.clear()

    # Small things ----------------------------------------------------------------------------------------------------

    def _announce_spark(self, started: dict[str, object]) -> None:
        """Say ``started`` once more when the SparkContext is up, with its id and web page."""
        if _spark_details():
            return
        while not self.finished.wait(SPARK_LOOK_INTERVAL):
            with contextlib.suppress(Exception):
                if (details := _spark_details()) and self._link is not None:
                    self._link.post(Kind.STARTED, {**started, **details})
                    return

    def _fraction(self, value: float | None) -> float | None:
        if value is None:
            return None
        numbers = self._numbers({"fraction": value})
        if "fraction" not in numbers:
            return None
        clamped = min(1.0, max(0.0, numbers["fraction"]))
        if clamped != numbers["fraction"]:
            self._complain("fraction", f"progress: the fraction {value!r:.40} is not between 0 and 1; it was clamped.")
        return clamped

    def _numbers(self, values: dict[str, Any]) -> dict[str, float]:
        numbers: dict[str, float] = {}
        for name, value in values.items():
            try:
                number = value if isinstance(value, int) and abs(value) < 2**53 else float(value)
            except (TypeError, ValueError, OverflowError):
                number = math.nan
            if math.isfinite(number):
                numbers[_clean(name)] = number
            else:
                self._complain(name, f"progress: {name}={value!r:.40} is no finite number; it was left out.")
        return numbers

    def _complain(self, about: str, text: str) -> None:
        """Warn once about each thing: a training loop reports thousands of times."""
        if about not in self._complained:
            self._complained.add(about)
            log.warning("%s", text)


def _clean(text: object) -> str:
    """Any text as one that UTF-8 can hold."""
    return str(text).encode("utf-8", "replace").decode()


def _message(error: BaseException | None) -> str:
    """What an exception says, if it can: its own code makes the text."""
    try:
        return _clean(str(error))[:MAX_TEXT]
    except Exception as problem:  # noqa: BLE001 - the end must be told of, whatever it was
        return f"(no text: its __str__ raised {type(problem).__name__})"


def _own_frames(trace: TracebackType | None) -> TracebackType | None:
    """The traceback from where the application begins: the launcher's frames tell nobody anything."""
    first = trace
    while first is not None and first.tb_frame.f_globals.get("__name__") in _LAUNCHER:
        first = first.tb_next
    return first or trace


def heed_sigint() -> bool:
    """Let SIGINT raise KeyboardInterrupt where it is ignored; whether it was. For the main thread.

    A shell starts what runs in the background with SIGINT ignored, Spark's own ``start-worker.sh`` among it, and that goes
    down to all drivers: nothing could interrupt the application then.
    """
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        return False
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return True


def _interrupt_main_thread() -> None:
    """Do what Ctrl-C does: PySpark's handler cancels the running Spark jobs, and Python raises KeyboardInterrupt.

    A signal to the thread itself, because one that only sets a flag would not end a wait inside the kernel, such as
    for the JVM's answer.
    """
    main = threading.main_thread()
    if main.is_alive() and main.ident is not None:
        signal.pthread_kill(main.ident, signal.SIGINT)


def _spark_details() -> dict[str, object]:
    """The id and web page of the SparkContext of this process, if there is one. PySpark is never imported for it."""
    module = sys.modules.get("pyspark.core.context") or sys.modules.get("pyspark.context")
    context = getattr(getattr(module, "SparkContext", None), "_active_spark_context", None)
    if context is None:
        return {}
    return {"application_id": context.applicationId, "ui": context.uiWebUrl}


def _log_to_stderr() -> None:
    """By hand, in a terminal, without logging set up: show what is reported."""
    if not log.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("job: %(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
