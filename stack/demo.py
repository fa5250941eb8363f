"""``make demo``: a DAG trains a model on Spark and is told over amqps the moment it ends. All of it for real.

What is shown while it runs comes from the broker, pushed: this program subscribes to the exchange like any other reader.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import shutil
import signal
import sys
import time
import traceback
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_rabbitmq_spark.amqp.background import Background
from airflow_rabbitmq_spark.amqp.connection import Connection, Message
from airflow_rabbitmq_spark.exceptions import EventInvalid, RabbitMQSparkError
from airflow_rabbitmq_spark.job.events import Event, Kind, decode
from stack.airflow import Airflow
from stack.broker import Broker
from stack.http_counter import RestCounter
from stack.processes import StartFailed
from stack.spark import SparkCluster

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import FrameType

    from airflow_rabbitmq_spark.amqp.endpoint import Endpoint
    from stack.processes import Process

ROOT = Path(__file__).parent.parent
DIRECTORY = ROOT / ".demo"
DAG = "train_digits"
#: Seconds after which the run is given up. It takes about a minute where nothing else runs; a part that ends is seen at
#: once, and a task that fails is told.
PATIENCE = 600.0
WIDTH = 30


class Failed(Exception):
    """The demo failed; the message says why, and ends with the log that explains it."""


class Screen:
    """Prints lines, and under them, on a terminal, one that changes."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._live = sys.stdout.isatty()
        self._bar = ""

    def say(self, text: str) -> None:
        """A line that stays."""
        if self._bar:
            sys.stdout.write("\r\033[K")
        print(f"{time.monotonic() - self._began:6.1f} s  {text}", flush=True)
        self._draw()

    def bar(self, text: str) -> None:
        """The line that changes; in a log, where nothing can change, it is a line like the others."""
        if not self._live:
            self.say(text)
            return
        self._bar = text
        self._draw()

    def _draw(self) -> None:
        if self._bar:
            columns = shutil.get_terminal_size().columns
            sys.stdout.write(f"\r\033[K{f'          {self._bar}'[: columns - 1]}")
            sys.stdout.flush()

    def end_bar(self) -> None:
        """Let the line that changes stay as it is."""
        if self._bar:
            print()
        self._bar = ""


class Listener:
    """Receives what is published, as any consumer would: an exclusive queue, bound to the two exchanges."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.messages: queue.Queue[Message] = queue.Queue()
        self._background = Background("demo-listener")
        self._connection = self._background.call(self._subscribe(endpoint))

    async def _subscribe(self, endpoint: Endpoint) -> Connection:
        connection = await Connection.open(endpoint, connection_name="demo")
        channel = await connection.channel()
        await channel.declare_exchange(endpoint.exchange)
        name = "demo.listener"
        await channel.declare_queue(name, exclusive=True)
        await channel.bind_queue(name, endpoint.exchange, "#")
        await channel.bind_queue(name, "amq.topic", f"airflow.{DAG}.#")

        def receive(message: Message) -> None:
            channel.ack(message.tag)
            self.messages.put(message)

        await channel.consume(name, receive)
        return connection

    def close(self) -> None:
        """Close the connection."""
        self._background.call(self._connection.close())
        self._background.stop()


def show(screen: Screen, event: Event) -> None:
    """One event of the job on the screen."""
    from airflow_rabbitmq_spark.triggers.spark_job import describe

    if event.kind is not Kind.PROGRESS:
        screen.say(f"job      {describe(event)}" if event.kind is not Kind.SUCCEEDED else "job      succeeded")
        return
    fraction = float(event.data.get("fraction") or 0.0)
    filled = round(fraction * WIDTH)
    metrics = "  ".join(f"{name} {value:.4f}" for name, value in (event.data.get("metrics") or {}).items())
    screen.bar(f"[{'#' * filled}{'.' * (WIDTH - filled)}] {fraction:4.0%}  {event.data.get('text') or ''}  {metrics}")


def follow(screen: Screen, listener: Listener, airflow: Airflow, run_id: str, parts: Sequence[Process]) -> Event:
    """Show what is pushed until the DAG's last task has ended; the job's last event.

    :param parts: what has to run all the while.
    :raises Failed: a task or one of the parts failed, or nothing more comes.
    """
    final: Event | None = None
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            message = listener.messages.get(timeout=1.0)
        except queue.Empty:
            for part in parts:
                if not part.is_running:
                    raise Failed(f"{part.name} has ended in the middle of the run.\n{part.tail()}") from None
            if time.monotonic() < deadline:
                continue
            raise Failed(f"The run has not ended after {PATIENCE:g} s.\n{task_log(airflow, run_id, 'train')}") from None
        if message.exchange == "amq.topic":
            told = json.loads(message.body)
            screen.end_bar()
            screen.say(f"airflow  task {told['task_id']}: {told['state']}")
            if told["state"] != "success":
                raise Failed(f"Task {told['task_id']} failed.\n{task_log(airflow, run_id, told['task_id'])}")
            if told["task_id"] == "report" and final is not None:
                return final
            continue
        try:
            event = decode(message.body)
        except EventInvalid as error:
            screen.say(f"A message was not understood: {error}.")
            continue
        if event.is_final:
            screen.end_bar()
            final = event
        show(screen, event)


def task_log(airflow: Airflow, run_id: str, task_id: str) -> str:
    """The end of a task's log."""
    try:
        text = airflow.log(DAG, run_id, task_id)
    except Exception as error:  # noqa: BLE001 - whatever is wrong, the other logs are all there is then
        text = f"(Airflow does not give the task's log: {error})"
    return "\n".join([f"The last lines of the log of task {task_id}:", *text.splitlines()[-25:]])


def report(screen: Screen, airflow: Airflow, run_id: str, final: Event, counter: RestCounter) -> None:
    """The figures."""
    if (state := airflow.wait_for_run(DAG, run_id, timeout=30)) != "success":
        raise Failed(f"The run ended as {state}.\n{task_log(airflow, run_id, 'report')}")
    result: dict[str, Any] = airflow.xcom(DAG, run_id, "train")
    details: dict[str, Any] = airflow.xcom(DAG, run_id, "train", "spark_job")
    screen.say(f"airflow  run {run_id}: {state}")
    polls = counter.counts["status"]
    rows = [
        ("accuracy", f"{result['accuracy']:.4f} (mean of {len(result['folds'])} folds)"),
        ("model saved in", str(result["model"])),
        ("DAG resumed", f"{details['resumed_after']:.2f} s after the driver's last event"),
        ("polls of the job", f"{polls} (requests for its status that the Spark master got)"),
        (
            "worker slot held",
            (
                f"{details['slot_seconds']:.1f} s of the job's {final.data['duration']:.1f} s "
                f"({details['slot_seconds'] / final.data['duration']:.0%})"
            ),
        ),
    ]
    print()
    for name, value in rows:
        print(f"  {name:<18} {value}")
    print(flush=True)
    if polls:
        raise Failed(f"Something polled the job {polls} times.")


def run(directory: Path, screen: Screen, stack: ExitStack, *, keep: bool) -> None:
    """Start everything, run the DAG, show it, and stop everything."""
    broker = Broker(directory / "broker")
    stack.callback(broker.stop)
    broker.launch()
    spark = SparkCluster(directory / "spark", ROOT / ".venv-spark" / "bin" / "python")
    stack.callback(spark.stop)
    spark.launch()
    counter = stack.enter_context(RestCounter(spark.rest_port))
    airflow = Airflow(
        directory / "airflow",
        dags=ROOT / "dags",
        connections={"rabbitmq_default": broker.connection(), "spark_default": spark.connection(counter.port)},
        environment={"MODELS_DIR": str(directory / "models")},
        standalone=True,
    )
    stack.callback(airflow.stop)
    parts = [broker.process, spark.master, spark.worker, *airflow.components.values()]
    stack.callback(tell_to_stop, parts)
    airflow.launch()
    # Takes seconds, because it imports Airflow; before this, Ctrl-C would not be heeded yet, after it, events would wait.
    import airflow_rabbitmq_spark.triggers.spark_job  # noqa: F401

    broker.wait()
    screen.say(f"RabbitMQ listens on amqps://{broker.host}:{broker.port}, and on nothing else")
    listener = Listener(broker.endpoint())
    stack.callback(listener.close)
    spark.wait()
    screen.say(f"Spark {spark.version} standalone: {spark.master_url}")
    airflow.wait()
    screen.say(f"Airflow: {airflow.url}")
    run_id = airflow.trigger(DAG)
    screen.say(f"airflow  run {run_id} of DAG {DAG}: triggered")
    final = follow(screen, listener, airflow, run_id, parts)
    report(screen, airflow, run_id, final, counter)
    if keep:
        with suppress(SystemExit):
            print(f"  Airflow    {airflow.url}/dags/{DAG}/runs/{run_id}")
            print(f"  login      {airflow.username} / {airflow.password}")
            print(f"  Spark      {spark.web_url}")
            print(f"  to stop    Ctrl-C here, or: kill {os.getpid()}", flush=True)
            while True:
                # Not signal.pause(): one that comes just before it would be lost.
                time.sleep(1)


def tell_to_stop(parts: Sequence[Process]) -> None:
    """Tell all parts to stop, so that they do it at the same time; each is waited for afterwards."""
    for part in parts:
        part.stop(wait=False)


def stopped(number: int, _frame: FrameType | None) -> None:
    """A signal ends the demo the way an error does: everything is stopped on the way out."""
    raise SystemExit(128 + number)


def heed(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    """What to do about Ctrl-C and its like."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, handler)


def main() -> int:
    """Run the demo; 0 when all went well."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave everything running until it is told to stop")
    parser.add_argument("--directory", type=Path, default=DIRECTORY, help="of all that it writes; .demo unless given")
    options = parser.parse_args()
    heed(stopped)
    directory = options.directory.resolve()
    screen = Screen()
    try:
        with ExitStack() as stack:
            stack.enter_context(only_one(directory))
            make_anew(directory)
            try:
                run(directory, screen, stack, keep=options.keep)
            finally:
                # A second Ctrl-C, while everything is being stopped, must not leave half of it running.
                heed(signal.SIG_IGN)
                screen.end_bar()
                print("Stopping everything ...", flush=True)
    except SystemExit as stop:
        screen.end_bar()
        print("Stopped: nothing is left running.", flush=True)
        return int(stop.code or 0)
    except (Failed, StartFailed, RabbitMQSparkError) as error:
        screen.end_bar()
        print(f"\nmake demo failed: {error}", file=sys.stderr, flush=True)
        return 1
    except Exception:  # noqa: BLE001 - what nobody has thought of explains itself by where it came from
        screen.end_bar()
        print(f"\nmake demo failed:\n{traceback.format_exc()}", file=sys.stderr, flush=True)
        return 1
    return 0


def only_one(directory: Path) -> Any:
    """A lock of this folder: two demos in one would delete each other's files.

    :raises Failed: it is taken.
    """
    import fcntl

    directory.parent.mkdir(parents=True, exist_ok=True)
    file = directory.with_name(f"{directory.name}.lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise Failed("Another demo runs in this folder. Stop it, or use another clone or --directory.") from error
    return file


def make_anew(directory: Path) -> None:
    """An empty folder in place of the last demo's.

    :raises Failed: there is something else in it.
    """
    mark = directory / "made-by-demo"
    if directory.exists() and any(directory.iterdir()) and not mark.exists() and directory != DIRECTORY:
        raise Failed(f"{directory} is not empty and was not made by a demo. Name another folder.")
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    mark.touch()


if __name__ == "__main__":
    sys.exit(main())
