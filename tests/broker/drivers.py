"""Real drivers in processes of their own, and somebody who hears all that is said of a job."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonschema import Draft202012Validator

from airflow_rabbitmq_spark.amqp.background import Background
from airflow_rabbitmq_spark.amqp.connection import Connection
from airflow_rabbitmq_spark.amqp.endpoint import Endpoint
from airflow_rabbitmq_spark.amqp.multiplexer import shared
from airflow_rabbitmq_spark.job.events import Event, Kind, decode
from airflow_rabbitmq_spark.job.handover import Handover, Settings
from airflow_rabbitmq_spark.job.mailbox import Mailbox
from airflow_rabbitmq_spark.job.topology import Job

if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from stack.broker import Broker
    from stack.proxy import Proxy

SPARK_PYTHON = Path(__file__).parents[2] / ".venv-spark" / "bin" / "python"

SCHEMA = Draft202012Validator(json.loads((Path(__file__).parents[2] / "docs" / "event.schema.json").read_text()))

#: Seconds for anything that happens at once on an idle machine: this one may be busy.
PATIENCE = 90.0

#: What every application below begins with. `say` tells the test where it is; `hear` waits for a line of the test's.
PRELUDE = """
import os, sys, time
from airflow_rabbitmq_spark.job import open_job
def say(text): print(text, flush=True)
def hear(): return sys.stdin.readline().strip()
"""


class Driver:
    """A process that runs an application with ``open_job()``. A context manager that leaves no process behind.

    :param bundle: run it as Spark would, from the bundle with Spark's Python; with this Python otherwise.
    """

    def __init__(
        self,
        job: Job,
        endpoint: Endpoint,
        code: str,
        *,
        settings: Settings | None = None,
        bundle: Path | None = None,
        traceparent: str | None = None,
    ) -> None:
        handover = Handover(job, endpoint, settings or Settings(), traceparent)
        if bundle is None:
            command = [sys.executable, "-c", PRELUDE + code]
        else:
            application = bundle.parent / f"{job.job_id}.py"
            application.write_text(PRELUDE + code)
            command = [str(SPARK_PYTHON), str(bundle), str(application)]
        self.process = subprocess.Popen(
            command,
            env={**os.environ, **handover.to_environment()},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.errors = ""
        self._reader = threading.Thread(target=self._read_errors, daemon=True)
        self._reader.start()

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.errors += line

    def __enter__(self) -> Driver:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        if error is not None:
            print("The driver's standard error:", self.errors, sep="\n")

    def hear(self, text: str) -> None:
        """Wait until the application says ``text``."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        if line != text:
            self._reader.join(5)
            raise AssertionError(f"the application said {line!r} and not {text!r}:\n{self.errors}")

    def say(self, text: str = "") -> None:
        """Let the application go on where it waits for a line."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{text}\n")
        self.process.stdin.flush()

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        """Wait for the end, and return the exit code."""
        code = self.process.wait(PATIENCE)
        self._reader.join()
        return code

    def logs(self, text: str) -> None:
        """Wait until its standard error has ``text``."""
        eventually(lambda: text in self.errors)


class Listener:
    """Hears every event of a job, over a queue and a connection of its own that outlive the broker's restarts."""

    def __init__(self, endpoint: Endpoint, job: Job) -> None:
        self._endpoint, self._job = endpoint, job
        self._queue = f"test-listener-{job.job_id}"
        self.events: list[Event] = []
        self.headers: list[Any] = []
        #: What the published schema says against them.
        self.complaints: list[str] = []
        self._said = threading.Condition()

    def __enter__(self) -> Listener:
        self._background = Background("listener")
        self._background.call(self._declare())
        self._task = asyncio.run_coroutine_threadsafe(self._listen(), self._background.loop)
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self._task.cancel()
        with contextlib.suppress(Exception):
            self._background.call(self._delete(), timeout=10)
        self._background.stop()
        assert self.complaints == []

    async def _declare(self) -> None:
        connection = await Connection.open(self._endpoint)
        channel = await connection.channel()
        await channel.declare_exchange(self._job.exchange)
        await channel.declare_queue(self._queue)
        await channel.bind_queue(self._queue, self._job.exchange, self._job.binding_key)
        await connection.close()

    async def _delete(self) -> None:
        connection = await Connection.open(self._endpoint)
        await (await connection.channel()).delete_queue(self._queue)
        await connection.close()

    async def _listen(self) -> None:
        async with shared(self._endpoint).subscribe(self._queue) as subscription:
            while True:
                message = await subscription.next()
                event = decode(message.body)
                self.complaints += [error.message for error in SCHEMA.iter_errors(json.loads(message.body))]
                with self._said:
                    if event.id not in {known.id for known in self.events}:
                        self.events.append(event)
                        self.headers.append(message)
                    self._said.notify_all()
                subscription.ack(message)

    @property
    def kinds(self) -> list[str]:
        """What was said up to now, in this order."""
        with self._said:
            return [event.kind.value for event in self.events]

    def wait(self, kind: Kind, *, count: int = 1) -> Event:
        """Wait for the ``count``-th event of a kind."""
        with self._said:
            heard = self._said.wait_for(
                lambda: sum(event.kind is kind for event in self.events) >= count, timeout=PATIENCE
            )
            assert heard, f"no {kind} (number {count}) among {[event.kind.value for event in self.events]}"
            return [event for event in self.events if event.kind is kind][count - 1]


def eventually(true: Callable[[], object], *, timeout: float = PATIENCE) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + timeout
    while not true():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.05)


def through(proxy: Proxy, broker: Broker, **options: Any) -> Endpoint:
    """The broker's endpoint by way of a proxy."""
    uri = broker.uri().replace(f":{broker.port}/", f":{proxy.port}/")
    given: dict[str, Any] = {"ca_certificate": broker.ca_pem, **options}
    return Endpoint.from_uri(uri, **given)


@contextlib.contextmanager
def alarm(broker: Broker) -> Iterator[Callable[[], object]]:
    """A memory alarm on the broker: publishers are blocked. What it gives ends the alarm, as the end of the block does."""
    broker.set_alarm(on=True)
    end = functools.partial(broker.set_alarm, on=False)
    try:
        yield end
    finally:
        end()


@contextlib.contextmanager
def declared(endpoint: Endpoint) -> Iterator[tuple[Job, Mailbox, Listener]]:
    """A job whose queues are there, with the mailbox of Airflow's side and somebody who listens; gone afterwards."""
    job = Job.new("dag", "task", endpoint.exchange)
    with Mailbox(endpoint, connection_name="test") as mailbox:
        mailbox.declare(job)
    with Listener(endpoint, job) as listener:
        try:
            with Mailbox(endpoint, connection_name="test") as mailbox:
                yield job, mailbox, listener
        finally:
            with Mailbox(endpoint, connection_name="test") as mailbox:
                mailbox.delete(job)
