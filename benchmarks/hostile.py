"""How long does a hostile message keep a triggerer's event loop? Each kind, sent by another process, one at a time.

    .venv/bin/python -m benchmarks.hostile

A real broker and the real trigger of a job; the loop is asked every millisecond whether it is there. Prints a table: the
worst gap while the message was on its way and being read, of several runs. The first row, without a message, is what the
machine itself does to the loop. With --json one object per row: message, bytes, worst_ms, median_ms.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pika

from airflow_rabbitmq_spark.amqp.multiplexer import shared
from airflow_rabbitmq_spark.hooks.rabbitmq import RabbitMQHook
from airflow_rabbitmq_spark.job.events import CONTENT_TYPE, Event, Kind, encode
from airflow_rabbitmq_spark.job.mailbox import Mailbox
from airflow_rabbitmq_spark.job.topology import Job
from airflow_rabbitmq_spark.triggers.spark_job import SparkJobTrigger
from benchmarks.tables import show
from fuzz import seeds
from stack.broker import Broker

if TYPE_CHECKING:
    from collections.abc import Mapping

CONNECTION = "AIRFLOW_CONN_HOSTILE"


def messages(job: Job) -> Mapping[str, tuple[bytes, pika.BasicProperties]]:
    """The messages by what they are."""
    whole = encode(Event(Kind.PROGRESS, job.job_id, job.source, 1, {"text": "@"}))
    plain = pika.BasicProperties(content_type=CONTENT_TYPE)

    def data(value: bytes) -> bytes:
        return whole.replace(b'"@"', value)

    bodies = {
        "an event": whole,
        "2 MiB of text": data(b'"' + b"x" * (2**21 - 1000) + b'"'),
        "25,000 lists": data(b"[" + b"[]," * 24_900 + b"[]]"),
        "50,000 keys": data(b"{" + b",".join(b'"%d":1' % number for number in range(49_900)) + b"}"),
        "100,000 numbers": data(b"[" + b"1.5e300," * 99_900 + b"1]"),
        "700,000 objects": data(b"[" + b"{}," * 690_000 + b"{}]"),
        "a million digits": data(b"9" * 1_000_000),
        "nested 20,000 deep": b"[" * 20_000,
        "15 MiB": b"\0" * 15 * 2**20,
        "100 MB": b"\0" * 100_000_000,
    }
    found: dict[str, tuple[bytes, pika.BasicProperties]] = {name: (body, plain) for name, body in bodies.items()}
    for name, entries in seeds.HEADERS.items():
        found[f"headers: {name}"] = (b"{}", seeds.RawHeaders(entries))
    # As many as are read.
    found["headers: 16,000 values"] = (b"{}", seeds.RawHeaders(b"\x01aA" + (16_000).to_bytes(4, "big") + b"V" * 16_000))
    return found


def publish(job: Job) -> None:
    """The other process: publishes the message whose name each line of standard input has, and answers."""
    channel = RabbitMQHook("hostile").get_conn().channel()
    channel.confirm_delivery()
    known = messages(job)
    for line in sys.stdin:
        body, properties = known[line.rstrip("\n")]
        channel.basic_publish(job.exchange, job.routing_key("progress"), body, properties, mandatory=True)
        print("published", flush=True)


class Gaps:
    """The longest time that the event loop was not there."""

    worst = 0.0

    async def run(self) -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            self.worst = max(self.worst, time.perf_counter() - before - 0.001)


async def measure(job: Job, publisher: asyncio.subprocess.Process, rounds: int) -> list[dict[str, Any]]:
    rules = {"start_by": time.time() + 3600}
    trigger = SparkJobTrigger(rabbitmq_conn_id="hostile", spark_conn_id="none", job=job.to_json(), rules=rules)
    waiting = asyncio.ensure_future(anext(trigger.run()))
    gaps = Gaps()
    probe = asyncio.ensure_future(gaps.run())
    multiplexer = shared(await RabbitMQHook("hostile").aendpoint())
    rows = []
    for name, (body, _) in {"(nothing)": (b"", None), **messages(job)}.items():
        found = []
        for _ in range(rounds):
            gaps.worst = 0.0
            if name != "(nothing)":
                assert publisher.stdin is not None
                assert publisher.stdout is not None
                publisher.stdin.write(f"{name}\n".encode())
                assert await publisher.stdout.readline()
            await asyncio.sleep(1 + len(body) / 2**25)
            found.append(gaps.worst * 1000)
        rows.append(
            {
                "message": name,
                "bytes": len(body),
                "median_ms": round(statistics.median(found), 1),
                "worst_ms": round(max(found), 1),
            }
        )
    probe.cancel()
    waiting.cancel()
    assert multiplexer.connections_opened == 1
    await asyncio.wait([waiting])
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--publish", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.publish:
        publish(Job.from_json(json.loads(options.publish)))
        return 0
    logging.disable(logging.CRITICAL)
    job = Job.new("d", "t")
    with tempfile.TemporaryDirectory() as folder, Broker(Path(folder)) as broker:
        os.environ[CONNECTION] = broker.connection()
        with Mailbox(broker.endpoint(), connection_name="benchmark") as mailbox:
            mailbox.declare(job)

        async def run() -> list[dict[str, Any]]:
            publisher = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "benchmarks.hostile",
                "--publish",
                json.dumps(job.to_json()),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            try:
                return await measure(job, publisher, options.rounds)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    publisher.kill()
                await publisher.wait()

        show(asyncio.run(run()), as_json=options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
