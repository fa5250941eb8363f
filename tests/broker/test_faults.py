"""The broker goes away, in good order or with SIGKILL, while everybody is at work; and what is left afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
import time
import uuid
from pathlib import Path

import pytest

from airflow_rabbitmq_spark.amqp.background import Background
from airflow_rabbitmq_spark.amqp.blocking import Operations
from airflow_rabbitmq_spark.amqp.multiplexer import Multiplexer
from airflow_rabbitmq_spark.amqp.publisher import Outgoing, Publisher
from airflow_rabbitmq_spark.exceptions import ConnectionFailed
from airflow_rabbitmq_spark.job.events import Kind
from airflow_rabbitmq_spark.job.handover import Settings
from airflow_rabbitmq_spark.job.watch import Rules, Verdict
from stack.broker import Broker
from stack.leash import descendants
from stack.processes import command_line
from tests.broker.drivers import PATIENCE, Driver, declared

#: Waits beside the jobs.
WAITS = 200

WORK = """
with open_job() as job:
    say("runs")
    while (line := hear()) != "end":
        job.progress(text=line)
        say(line)
    job.result("done")
"""


def driver(stack: contextlib.ExitStack, endpoint):
    job, mailbox, listener = stack.enter_context(declared(endpoint))
    process = stack.enter_context(Driver(job, endpoint, WORK, settings=Settings(delivery_timeout=PATIENCE)))
    process.hear("runs")
    listener.wait(Kind.STARTED)
    return functools.partial(mailbox.wait, job), listener, process


@pytest.mark.parametrize("way", ["stop", "kill"])
def test_the_broker_goes_and_comes_back(broker, way):
    """Drivers that say nothing, something or their last word meanwhile; a publisher; many waits; and a waiter of a job."""
    endpoint = broker.endpoint(heartbeat=2)
    names = [f"test-{uuid.uuid4().hex}" for _ in range(WAITS)]
    with contextlib.ExitStack() as stack:
        operations = stack.enter_context(Operations(endpoint))
        for name in names:
            operations.declare_queue(name)
        wait_for_quiet, quiet_heard, quiet = driver(stack, endpoint)
        _, busy_heard, busy = driver(stack, endpoint)
        _, ended_heard, ended = driver(stack, endpoint)
        publisher = stack.enter_context(Publisher(endpoint))
        publisher.publish_many(Outgoing(b"before", name) for name in names)

        waits = stack.enter_context(contextlib.closing(Waits(endpoint, names)))
        waits.wait_for(b"before")
        outcomes: list[object] = []
        rules = Rules(start_by=time.time() + PATIENCE, lost_grace=PATIENCE)
        waiter = threading.Thread(target=lambda: outcomes.append(wait_for_quiet(rules)))
        waiter.start()

        getattr(broker, way)()
        with pytest.raises(ConnectionFailed):
            publisher.publish("", names[0], b"nobody is there")
        for text in ("one", "two"):
            busy.say(text)
            busy.hear(text)
        ended.say("end")
        for process in (quiet, busy, ended):
            process.logs("Not connected to Airflow's broker")
        assert ended.process.poll() is None
        broker.start()

        # Each says that it lives, or its last word.
        assert ended.wait() == 0, ended.errors
        ended_heard.wait(Kind.SUCCEEDED)
        quiet_heard.wait(Kind.RESUMED)
        busy_heard.wait(Kind.PROGRESS, count=2)
        publisher.publish_many(Outgoing(b"after", name) for name in names)
        waits.wait_for(b"after")
        assert waits.multiplexer.connections_opened == 2
        for process in (quiet, busy):
            process.say("end")
            assert process.wait() == 0, process.errors
            assert "Not delivered" not in process.errors
        waiter.join(PATIENCE)
        # Nobody who waited took the broker's word for the driver's death.
        assert [outcome.verdict for outcome in outcomes] == [Verdict.SUCCEEDED]
        assert outcomes[0].event.data["result"] == "done"

        for heard in (quiet_heard, busy_heard, ended_heard):
            end = heard.wait(Kind.SUCCEEDED)
            assert end.data["result"] == "done"
            said = [event for event in heard.events if event.kind is not Kind.LOST]
            assert [event.sequence for event in said] == list(range(1, len(said) + 1))
            assert said[-1] is end
        texts = [event.data["text"] for event in busy_heard.events if event.kind is Kind.PROGRESS]
        assert texts == ["one", "two"]
    with Operations(endpoint) as operations:
        for name in names:
            assert operations.inspect_queue(name).messages == 0
            operations.delete_queue(name)


class Waits:
    """A subscription to each of some queues, on one connection."""

    def __init__(self, endpoint, names) -> None:
        self._background = Background("waits")
        self.multiplexer = self._background.call(self._make(endpoint))
        self._got: dict[str, set[bytes]] = {name: set() for name in names}
        self._tasks = [asyncio.run_coroutine_threadsafe(self._wait(name), self._background.loop) for name in names]

    @staticmethod
    async def _make(endpoint) -> Multiplexer:
        return Multiplexer(endpoint)

    async def _wait(self, name: str) -> None:
        async with self.multiplexer.subscribe(name) as subscription:
            while True:
                message = await subscription.next()
                self._got[name].add(message.body)
                subscription.ack(message)

    def wait_for(self, body: bytes) -> None:
        deadline = time.monotonic() + PATIENCE
        while missing := [name for name, bodies in self._got.items() if body not in bodies]:
            assert time.monotonic() < deadline, f"{len(missing)} of {len(self._got)} waits did not get {body!r}"
            time.sleep(0.05)

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._background.stop()


def test_a_node_leaves_nothing_behind(tmp_path):
    with Broker(tmp_path) as node:
        leash = node.process.pids()
        assert any("beam" in command_line(pid) for pid in leash)
        assert any("epmd" in command_line(pid) for pid in leash)
        node.kill()
        assert not any(command_line(pid) for pid in leash)
    # Whatever RabbitMQ it is, it mounted nothing that outlives it.
    assert ".rabbitmq" not in Path("/proc/self/mounts").read_text()
    assert not [pid for pid in descendants(1) if str(tmp_path) in command_line(pid)]
