"""What is really said on a broker is what docs/event.schema.json describes, and the subscribers of the docs hear it."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest

from airflow_rabbitmq_spark.amqp.background import Background
from airflow_rabbitmq_spark.amqp.connection import Connection, Message
from airflow_rabbitmq_spark.hooks.rabbitmq import RabbitMQHook
from airflow_rabbitmq_spark.job.events import CONTENT_TYPE, TYPE_PREFIX, Kind
from airflow_rabbitmq_spark.job.handover import Handover, Settings
from airflow_rabbitmq_spark.job.mailbox import Mailbox
from airflow_rabbitmq_spark.job.topology import Job
from stack.processes import free_port
from stack.proxy import Proxy
from tests.markdown import ROOT, Example, example, examples

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from airflow_rabbitmq_spark.amqp.endpoint import Endpoint
    from stack.broker import Broker

SCHEMA = json.loads((ROOT / "docs" / "event.schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)

#: Applications, by what becomes of them.
SUCCEED = example("applications.md", "python application", "accuracies").text
WAIT = """
import time
from airflow_rabbitmq_spark.job import open_job
with open_job() as job:
    job.progress(None, None)
    time.sleep(300)
"""


class Listener:
    """Keeps every message of the exchange."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.messages: queue.Queue[Message] = queue.Queue()
        self._background = Background("listener")
        self._connection = self._background.call(self._listen(endpoint))

    async def _listen(self, endpoint: Endpoint) -> Connection:
        connection = await Connection.open(endpoint)
        channel = await connection.channel()
        await channel.declare_exchange(endpoint.exchange)
        await channel.declare_queue("docs", exclusive=True)
        await channel.bind_queue("docs", endpoint.exchange, "#")

        def keep(message: Message) -> None:
            channel.ack(message.tag)
            self.messages.put(message)

        await channel.consume("docs", keep)
        return connection

    def until(self, job: Job, kind: Kind) -> list[Message]:
        """The job's messages up to the first of that kind."""
        found: list[Message] = []
        while not found or not found[-1].routing_key.endswith(f".{kind}"):
            message = self.messages.get(timeout=60)
            if message.properties.correlation_id == job.job_id:
                found.append(message)
        return found

    def close(self) -> None:
        self._background.call(self._connection.close())
        self._background.stop()


@pytest.fixture
def listener(broker_endpoint: Endpoint) -> Iterator[Listener]:
    listening = Listener(broker_endpoint)
    yield listening
    listening.close()


@contextmanager
def driver(
    endpoint: Endpoint, text: str, *, through: Endpoint | None = None
) -> Iterator[tuple[Job, subprocess.Popen[str], Mailbox]]:
    """A job and a process that is its driver; everything is gone at the end."""
    job = Job.new("training.nightly", "train", endpoint.exchange)
    handover = Handover(
        job, through or endpoint, Settings(delivery_timeout=30), traceparent=f"00-{'ab' * 16}-{'cd' * 8}-01"
    )
    with Mailbox(endpoint, connection_name="docs") as mailbox:
        mailbox.declare(job)
        with subprocess.Popen(
            [sys.executable, "-c", text],
            env={**os.environ, **handover.to_environment()},
            stderr=subprocess.DEVNULL,
            text=True,
        ) as process:
            try:
                yield job, process, mailbox
            finally:
                process.kill()
        mailbox.delete(job)


def checked(messages: list[Message]) -> list[str]:
    """The kinds of messages that are what the protocol's page says of form, properties and routing keys."""
    kinds = []
    for message in messages:
        event = json.loads(message.body)
        VALIDATOR.validate(event)
        kind = event["type"].removeprefix(TYPE_PREFIX)
        assert set(event) <= set(SCHEMA["properties"])
        assert set(event["data"]) <= set(SCHEMA["$defs"][kind]["properties"])
        assert event["source"] == "/airflow/training%2Enightly/train"
        properties = message.properties
        assert properties.content_type == CONTENT_TYPE == "application/cloudevents+json"
        assert properties.message_id == event["id"]
        assert properties.correlation_id == event["subject"]
        assert properties.type == kind
        assert properties.delivery_mode == 2
        if message.exchange:
            assert message.routing_key == f"training%2Enightly.train.{event['subject']}.{kind}"
        assert (event.get("traceparent") is None) == (kind in ("lost", "cancel"))
        kinds.append(kind)
    return kinds


def test_every_kind_of_event_is_what_the_schema_describes(
    listener: Listener, broker: Broker, monkeypatch: pytest.MonkeyPatch
):
    endpoint = broker.endpoint()
    seen = set()

    with driver(endpoint, SUCCEED) as (job, _, _):
        messages = listener.until(job, Kind.SUCCEEDED)
        assert checked(messages) == ["started", "progress", "progress", "progress", "succeeded"]
        assert [json.loads(message.body)["sequence"] for message in messages] == [1, 2, 3, 4, 5]
        seen |= set(checked(messages))

    for failing in ("raise ValueError('no rows')", "raise SystemExit(3)", "raise SystemExit('no rows')"):
        with driver(endpoint, WAIT.replace("time.sleep(300)", failing)) as (job, _, _):
            seen |= set(checked(listener.until(job, Kind.FAILED)))

    with driver(endpoint, WAIT) as (job, _, mailbox):
        checked(listener.until(job, Kind.PROGRESS))
        assert mailbox.cancel(job, "the task was cleared")
        seen |= set(checked(listener.until(job, Kind.CANCELLED)))

    with driver(endpoint, WAIT) as (job, process, _):
        checked(listener.until(job, Kind.PROGRESS))
        process.send_signal(signal.SIGKILL)
        (lost,) = listener.until(job, Kind.LOST)
        assert lost.headers["x-death"][0]["time"]
        seen |= set(checked([lost]))

    with Proxy(broker.port) as proxy:
        through = replace(endpoint, hosts=(("127.0.0.1", proxy.port),))
        with driver(endpoint, WAIT, through=through) as (job, process, _):
            checked(listener.until(job, Kind.PROGRESS))
            proxy.cut()
            seen |= set(checked(listener.until(job, Kind.RESUMED)))
            process.terminate()
            seen |= set(checked(listener.until(job, Kind.FAILED)))

    # What Airflow says to a driver goes to its control queue and nowhere else: be the driver.
    job = Job.new("training.nightly", "train", endpoint.exchange)
    monkeypatch.setenv("AIRFLOW_CONN_RABBITMQ_DEFAULT", broker.connection())
    with RabbitMQHook() as hook, Mailbox(endpoint, connection_name="docs") as mailbox:
        hook.declare_queue(job.control_queue)
        assert mailbox.cancel(job, "the task was cleared")
        cancel = hook.get(job.control_queue)
        hook.delete_queue(job.control_queue)
    VALIDATOR.validate(json.loads(cancel.body))
    seen.add(json.loads(cancel.body)["type"].removeprefix(TYPE_PREFIX))

    assert seen == set(Kind)


# The examples ----------------------------------------------------------------------------------------------------------


@contextmanager
def program(one: Example, broker: Broker, folder: Path, **environment: str) -> Iterator[queue.Queue[str]]:
    """An example of the docs as a program of its own, with the broker in its environment; the lines that it prints."""
    path = folder / "program.py"
    path.write_text(one.text)
    with subprocess.Popen(
        [sys.executable, "-u", str(path)],
        env={**os.environ, "AMQP_URL": broker.uri(), "CA_FILE": str(broker.ca_file), **environment},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=lambda: [lines.put(line) for line in process.stdout or ()], daemon=True).start()
        try:
            yield lines
        finally:
            process.kill()


def wait_until(ready: Callable[[], Any]) -> Any:
    """What ``ready`` answers, once that is something."""
    deadline = time.monotonic() + 60
    while not (answer := ready()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return answer


def test_the_subscriber_prints_what_jobs_say(broker: Broker, tmp_path: Path):
    with program(example("protocol.md", "python subscriber"), broker, tmp_path) as lines:
        wait_until(lambda: any(name.startswith("amq.gen-") for name in broker.queues()))
        with driver(broker.endpoint(), SUCCEED) as (job, _, _):
            printed = [lines.get(timeout=60) for _ in range(5)]
    source, job_id, kind, data = printed[-1].split(maxsplit=3)
    assert (source, job_id, kind) == (job.source, job.job_id, "succeeded")
    assert json.loads(data)["result"]["folds"] == [0.9, 0.91, 0.92]


def test_a_browser_is_told_what_jobs_say(broker: Broker, tmp_path: Path):
    port = free_port()
    address = f"http://127.0.0.1:{port}"

    def page() -> str:
        try:
            with urllib.request.urlopen(address, timeout=10) as answer:
                return str(answer.read().decode())
        except OSError:
            return ""

    with program(example("protocol.md", "python browser"), broker, tmp_path, PORT=str(port)):
        assert 'EventSource("/events")' in wait_until(page)
        with urllib.request.urlopen(f"{address}/events", timeout=60) as stream:
            assert stream.headers["Content-Type"] == "text/event-stream"
            assert stream.readline() == b": listening\n"
            with driver(broker.endpoint(), SUCCEED) as (job, _, _):
                kinds = []
                while "succeeded" not in kinds:
                    line = stream.readline()
                    if line.startswith(b"data: "):
                        event = json.loads(line[6:])
                        VALIDATOR.validate(event)
                        assert event["subject"] == job.job_id
                        kinds.append(event["type"].removeprefix(TYPE_PREFIX))
    assert kinds == ["started", "progress", "progress", "progress", "succeeded"]


@pytest.mark.parametrize("one", examples("python"), ids=str)
def test_programs_run_with_the_connection_in_the_environment(one: Example, broker: Broker, tmp_path: Path):
    environment = {"AIRFLOW_CONN_RABBITMQ_DEFAULT": broker.connection(), "AIRFLOW_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", one.text],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for said in [line.partition("  # ")[2] for line in one.text.splitlines() if line.startswith("    print(")]:
        assert said in done.stdout
