"""How long after a driver's death does the broker say so?

    .venv/bin/python -m benchmarks.lost [--sessions 100] [--json]

Sessions are processes of their own on a real TLS broker. SIGKILL: from the signal to the ``lost`` event at a subscriber.
SIGSTOP: the process is there and silent, so the broker has to miss its heartbeats (10 s each).
"""

from __future__ import annotations

import argparse
import os
import queue
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from airflow_rabbitmq_spark.amqp.background import Background
from airflow_rabbitmq_spark.amqp.connection import Connection, Message
from airflow_rabbitmq_spark.job.handover import Handover
from airflow_rabbitmq_spark.job.mailbox import Mailbox
from airflow_rabbitmq_spark.job.topology import Job
from benchmarks.tables import percentile, show
from stack.broker import Broker

if TYPE_CHECKING:
    from airflow_rabbitmq_spark.amqp.endpoint import Endpoint

SESSION = "from airflow_rabbitmq_spark.job import open_job\nimport time\nwith open_job(): time.sleep(300)\n"


class Subscriber:
    """Notes when each kind of event arrives."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.arrived: queue.Queue[tuple[float, str, str]] = queue.Queue()
        self._background = Background("subscriber")
        self._background.call(self._start(endpoint))

    async def _start(self, endpoint: Endpoint) -> None:
        connection = await Connection.open(endpoint)
        channel = await connection.channel()
        await channel.declare_exchange(endpoint.exchange)
        await channel.declare_queue("benchmark", exclusive=True)
        await channel.bind_queue("benchmark", endpoint.exchange, "#")

        def note(message: Message) -> None:
            channel.ack(message.tag)
            _, _, job_id, kind = message.routing_key.split(".")
            self.arrived.put((time.monotonic(), job_id, kind))

        await channel.consume("benchmark", note)

    def wait(self, job_id: str, kind: str, timeout: float) -> float:
        """When the event of this kind of this job arrived."""
        deadline = time.monotonic() + timeout
        while True:
            at, whose, what = self.arrived.get(timeout=max(0.01, deadline - time.monotonic()))
            if (whose, what) == (job_id, kind):
                return at


def one(mailbox: Mailbox, subscriber: Subscriber, endpoint: Endpoint, number: signal.Signals) -> float:
    """Seconds from the signal to ``lost``."""
    job = Job.new("benchmark", "lost", endpoint.exchange)
    mailbox.declare(job)
    environment = {**os.environ, **Handover(job, endpoint).to_environment()}
    with subprocess.Popen([sys.executable, "-c", SESSION], env=environment, stderr=subprocess.DEVNULL) as process:
        try:
            subscriber.wait(job.job_id, "started", 30)
            at = time.monotonic()
            process.send_signal(number)
            return subscriber.wait(job.job_id, "lost", 60) - at
        finally:
            process.kill()
            mailbox.delete(job)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=100)
    parser.add_argument("--stopped", type=int, default=3, help="sessions that are stopped and not killed")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder, Broker(Path(folder)) as broker:
        endpoint = broker.endpoint()
        subscriber = Subscriber(endpoint)
        with Mailbox(endpoint, connection_name="benchmark") as mailbox:
            for number, count in ((signal.SIGKILL, options.sessions), (signal.SIGSTOP, options.stopped)):
                if not count:
                    continue
                times = [one(mailbox, subscriber, endpoint, number) for _ in range(count)]
                rows.append(
                    {
                        "signal": number.name,
                        "sessions": count,
                        "p50_ms": round(percentile(times, 50) * 1000, 1),
                        "p99_ms": round(percentile(times, 99) * 1000, 1),
                        "most_ms": round(max(times) * 1000, 1),
                    }
                )
    show(rows, as_json=options.json)


if __name__ == "__main__":
    main()
