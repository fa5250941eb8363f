"""Hostile messages in a job's queue, with the real trigger on a real broker: what is refused, and who notices."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time

import pika
import pytest

from airflow_rabbitmq_spark.amqp.multiplexer import shared
from airflow_rabbitmq_spark.hooks.rabbitmq import RabbitMQHook
from airflow_rabbitmq_spark.job import watch
from airflow_rabbitmq_spark.job.events import CONTENT_TYPE, Event, Kind, encode
from airflow_rabbitmq_spark.job.mailbox import Mailbox
from airflow_rabbitmq_spark.job.topology import Job, refused_exchange
from airflow_rabbitmq_spark.job.watch import Rules, Verdict
from airflow_rabbitmq_spark.triggers import spark_job
from airflow_rabbitmq_spark.triggers.spark_job import SparkJobTrigger, describe
from fuzz import seeds

EXCHANGE = "hostile.spark"


def event(job, kind, sequence=1, **data):
    return Event(kind, job.job_id, job.source, sequence, data)


def hostile(job, largest):
    """Messages that must be refused: body and properties, by what is wrong with them."""
    whole = json.loads(encode(event(job, Kind.SUCCEEDED, result="forged", has_result=True)))

    def changed(**attributes):
        return json.dumps({**whole, **attributes}).encode()

    bodies = {
        "empty": b"",
        "not JSON": b"succeeded",
        "not UTF-8": b'{"a": "\xff"}',
        "another JSON": b"[1, 2]",
        "a type of another protocol": changed(type="com.example.order"),
        "an unknown kind": changed(type="airflow.spark.job.won"),
        "a foreign job id": changed(subject="f" * 32),
        "only Airflow says that": changed(type="airflow.spark.job.cancel"),
        "a sequence of the wrong type": changed(sequence="1"),
        "data of the wrong type": changed(data=[]),
        "a time of the wrong type": changed(time=7),
        "a number of a million digits": changed().replace(b'"forged"', b"9" * 1_000_000),
        "a number past 64 bits": changed(data={"result": 2**70}),
        "no number": changed(data={"result": float("nan")}),
        "nested 20,000 deep": b"[" * 20_000,
        "nested 100 deep": changed().replace(b'"forged"', b"[" * 100 + b"]" * 100),
        "half a character": changed().replace(b"forged", b"\\ud800"),
        "700,000 objects": changed().replace(b'"forged"', b"[" + b"{}," * 690_000 + b"{}]"),
        "larger than an event": changed().replace(b"forged", b"x" * 3 * 2**20),
        "as large as the broker takes": b"\0" * largest,
    }
    for name, body in bodies.items():
        yield name, body, pika.BasicProperties(content_type=CONTENT_TYPE, message_id=name)
    good = encode(event(job, Kind.SUCCEEDED, result="forged", has_result=True))
    for name, entries in seeds.HEADERS.items():
        yield name, good, seeds.RawHeaders(entries)


class Lag:
    """How long the event loop was not there for anybody, at the worst."""

    worst = 0.0

    async def run(self):
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.005)
            self.worst = max(self.worst, time.perf_counter() - before - 0.005)


@pytest.fixture
def hook(broker, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_HOSTILE", f"{broker.connection()}&exchange={EXCHANGE}")
    with RabbitMQHook("hostile") as opened:
        yield opened


def test_a_poisoned_job_disturbs_nobody(hook, broker, monkeypatch, caplog):
    endpoint = hook.endpoint()
    poisoned, healthy = Job.new("d", "poisoned", EXCHANGE), Job.new("d", "healthy", EXCHANGE)
    refused = refused_exchange(EXCHANGE)
    # RabbitMQ 4 takes 16 MiB at most unless it is told otherwise, RabbitMQ 3 takes 128.
    version = tuple(map(int, broker.version.split(".")[:2]))
    messages = list(hostile(poisoned, 100_000_000 if version < (4, 0) else 15 * 2**20))
    read_on: dict[int, set[int]] = {}

    def recorded(body, *, real=watch.decode):
        read_on.setdefault(len(body), set()).add(threading.get_ident())
        return real(body)

    monkeypatch.setattr(watch, "decode", recorded)
    shown: list[str] = []
    monkeypatch.setattr(spark_job, "describe", lambda said: shown.append(describe(said).strip()))
    caplog.set_level(logging.INFO)

    def publish(job, *what):
        connection = hook.get_conn()
        channel = connection.channel()
        channel.confirm_delivery()
        for body, properties in what:
            key = job.routing_key("progress")
            channel.basic_publish(EXCHANGE, key, body, properties, mandatory=True)
        connection.close()

    def plain(said):
        return encode(said), pika.BasicProperties(content_type=CONTENT_TYPE, message_id=said.id)

    def trigger(job):
        return SparkJobTrigger(
            rabbitmq_conn_id="hostile",
            spark_conn_id="none",
            job=job.to_json(),
            rules={"start_by": time.time() + 240, "lost_grace": 30.0},
        )

    async def fire(job, fired):
        async for one in trigger(job).run():
            json.dumps(one.payload, allow_nan=False)
            fired.set_result(one.payload["verdict"])

    async def story():
        lag = Lag()
        probe = asyncio.ensure_future(lag.run())
        verdicts = [asyncio.get_running_loop().create_future() for _ in range(2)]
        waits = [asyncio.ensure_future(fire(*pair)) for pair in zip((poisoned, healthy), verdicts, strict=True)]
        for _, body, properties in messages:
            await asyncio.to_thread(publish, poisoned, (body, properties))
        # Forwards, backwards and twice; nothing of that is an error, and what came twice is shown once.
        again = plain(event(poisoned, Kind.PROGRESS, 7, text="twice"))
        orders = [event(poisoned, Kind.PROGRESS, n, text=f"number {n}") for n in (9, 3, 5)]
        await asyncio.to_thread(publish, poisoned, again, *map(plain, orders), again)
        await asyncio.to_thread(publish, healthy, plain(event(healthy, Kind.SUCCEEDED, result=1, has_result=True)))
        assert await asyncio.wait_for(verdicts[1], 60) == "succeeded"
        # The first end counts: what comes after it was said by nobody who may.
        ends = [event(poisoned, Kind.SUCCEEDED, 10, result="true", has_result=True), event(poisoned, Kind.FAILED, 11)]
        await asyncio.to_thread(publish, poisoned, *map(plain, ends))
        assert await asyncio.wait_for(verdicts[0], 120) == "succeeded"
        assert shared(endpoint).connections_opened == 1
        for wait in waits:
            wait.cancel()
        await asyncio.wait(waits)
        probe.cancel()
        return lag.worst

    with Mailbox(endpoint, connection_name="test") as mailbox:
        for job in (poisoned, healthy):
            mailbox.declare(job)
        try:
            worst = asyncio.run(story())
            outcome = mailbox.wait(poisoned, Rules(start_by=0, end_by=time.time() + 30))
            assert (outcome.verdict, outcome.event.data["result"]) == (Verdict.SUCCEEDED, "true")
        finally:
            for job in (poisoned, healthy):
                mailbox.delete(job)
    print(f"\nworst lag of the event loop: {worst * 1000:.0f} ms, {len(messages)} hostile messages")
    # What is large is read beside the event loop, whose thread asyncio.run's is.
    loop = threading.get_ident()
    assert {size for size, threads in read_on.items() if loop in threads and size > 16 * 2**10} == set()
    assert any(size > 2**20 for size in read_on)
    # Said once, with the reason of the first; the rest is counted where it lies.
    warnings = [record for record in caplog.records if "refused and dead-lettered" in record.getMessage()]
    assert [poisoned.job_queue in record.getMessage() for record in warnings] == [True]
    assert shown == ["twice", "number 9", "number 3", "number 5"]
    # A person finds each of them, with where it came from.
    deadline = time.monotonic() + 30
    while hook.inspect_queue(refused).messages < len(messages):
        assert time.monotonic() < deadline, hook.inspect_queue(refused)
        time.sleep(0.1)
    found = [hook.get(refused) for _ in messages]
    assert {len(body) for _, body, _ in messages} == {len(message.body) for message in found}
    first = found[0].headers["x-death"][0]
    assert (first["reason"], first["queue"]) == ("rejected", poisoned.job_queue)
