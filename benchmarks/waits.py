"""What does it cost to wait for 100, 1,000 and 10,000 jobs in one triggerer process?

    .venv/bin/python -m benchmarks.waits [--waits 100 1000 10000] [--json]

Beside this package's trigger: those of the other RabbitMQ providers, as they are, in environments of their own
(``stack/peers.sh`` builds them; left out where they are not there), and a trigger that sleeps, which is Airflow's floor.
Each row has a broker and a process of its own, and goes through this:

1. One wait to warm up, so that imports are no part of what a wait costs. Then the queues are declared and bound, as an
   operator does before it submits.
2. The waits start. ``setup_s``: until the broker has a consumer for each of them.
3. ``idle_cpu_percent``: of one core, while nothing happens.
4. One in ten completes: a publisher sends the jobs' last events at a steady rate, as drivers do. ``p50_ms``, ``p99_ms``:
   from the publish to the trigger's event.
5. The broker is restarted. Another tenth completes in the very moment in which it is back. ``reconnect_s``: from then
   until every wait has its consumer again.
6. All the others complete. ``lost``: waits that did not fire their job's event, those included that ended in an error.

Memory: resident pages of the process, and ``erlang:memory(total)`` of the broker after a garbage collection; the
broker's figure includes the queue and its binding.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import queue
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pika

from airflow_rabbitmq_spark.amqp.background import Background
from airflow_rabbitmq_spark.amqp.connection import Connection
from airflow_rabbitmq_spark.job.events import CONTENT_TYPE, Event, Kind, encode
from airflow_rabbitmq_spark.job.topology import Job, job_queue_arguments, refused_exchange
from benchmarks.tables import percentile, show
from stack.broker import Broker
from stack.processes import base_environment, cpu_seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from airflow_rabbitmq_spark.amqp.connection import Channel

ROOT = Path(__file__).parent.parent
#: Events a second while some of the waits complete.
RATE = 100.0
#: Channels that declare at the same time.
DECLARERS = 16
#: Seconds that a phase may take before the row goes on without it.
PATIENCE = 180.0
COLUMNS = (
    *("implementation", "waits", "connections", "kib_per_wait", "broker_kib_per_wait", "setup_s", "setup_cpu_s"),
    *("idle_cpu_percent", "p50_ms", "p99_ms", "reconnect_s", "lost"),
)

CONSUMERS, CONNECTIONS = "consumer_created", "connection_created"


@dataclass(frozen=True)
class Implementation:
    """Whose trigger.

    :param key: what ``waiters.py`` calls it.
    :param most: waits beyond which it is not measured.
    :param ready: the broker's table with a row for each wait that is set up.
    :param holds: whether a wait that has fired keeps its consumer until Airflow cancels it.
    """

    key: str
    distribution: str
    label: str
    environment: str = ".venv"
    most: int = 10_000
    ready: str = CONSUMERS
    holds: bool = False
    uses_broker: bool = True

    @property
    def python(self) -> Path:
        return ROOT / self.environment / "bin" / "python"

    @property
    def name(self) -> str:
        found = subprocess.run(
            [
                self.python,
                "-Ic",
                "import sys; from importlib.metadata import version; print(version(sys.argv[1]))",
                self.distribution,
            ],
            capture_output=True,
            text=True,
            check=True,
        )
        return self.label.format(found.stdout.strip())


IMPLEMENTATIONS = (
    Implementation("ours", "airflow-rabbitmq-spark", "airflow-rabbitmq-spark {}", holds=True),
    Implementation(
        "rabbitmq",
        "apache-airflow-provider-rabbitmq",
        "apache-airflow-provider-rabbitmq {}",
        environment=".venv-peers",
        most=1_000,
    ),
    Implementation(
        "rmq-push", "airflow-provider-rmq", "airflow-provider-rmq {}, push", environment=".venv-peers-rmq", most=1_000
    ),
    Implementation(
        "rmq-pull",
        "airflow-provider-rmq",
        "airflow-provider-rmq {}, pull (its default)",
        environment=".venv-peers-rmq",
        most=1_000,
        ready=CONNECTIONS,
    ),
    Implementation("sleep", "apache-airflow", "a trigger that sleeps, Airflow {}", uses_broker=False),
)


class Waiters:
    """The process with the waits."""

    def __init__(self, implementation: Implementation, folder: Path, broker: Broker) -> None:
        self.fired: dict[str, float] = {}
        self._said: queue.Queue[str] = queue.Queue()
        host, port, ca = broker.host, broker.port, str(broker.ca_file)
        connection = {
            "conn_type": "rabbitmq",
            "host": host,
            "port": port,
            "login": broker.user,
            "password": broker.password,
            "schema": "/",
        }
        # Each in the words of its own provider.
        extra: dict[str, Any] = {
            "ours": {"tls": True, "ca_certificate": ca},
            "rabbitmq": {"ssl": True, "ssl_ca_certs": ca},
        }.get(implementation.key, {"ssl_enabled": True, "ca_certs": ca})
        environment = base_environment(
            AIRFLOW_HOME=str(folder / "airflow"),
            AIRFLOW__CORE__LOAD_EXAMPLES="False",
            AIRFLOW__LOGGING__LOGGING_LEVEL="WARNING",
            AIRFLOW_CONN_RABBITMQ_DEFAULT=json.dumps({**connection, "extra": extra}),
            PYTHONWARNINGS="ignore",
        )
        self.log = folder / "waiters.log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [implementation.python, "-P", ROOT / "benchmarks" / "waiters.py", implementation.key],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                text=True,
            )
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            match line.split():
                case ["fired", job_id, at]:
                    self.fired[job_id] = float(at)
                case _:
                    self._said.put(line.strip())
        self._said.put("ended")

    def __enter__(self) -> Waiters:
        self.hear("ready")
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()

    def hear(self, word: str) -> None:
        if (said := self._said.get(timeout=PATIENCE)) != word:
            raise RuntimeError(
                f"The process with the waits said {said!r}, not {word!r}:\n{self.log.read_text()[-3000:]}"
            )

    def tell(self, *orders: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("".join(f"{json.dumps(order)}\n" for order in orders))
        self._process.stdin.flush()

    @property
    def rss_kib(self) -> int:
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0])

    @property
    def cpu_s(self) -> float:
        return cpu_seconds(self._process.pid)


class Jobs:
    """Declares queues and publishes last events, on one connection that is closed in between."""

    def __init__(self, broker: Broker) -> None:
        self.endpoint = broker.endpoint()
        self.published: dict[str, float] = {}
        self._background = Background("jobs")

    def declare(self, jobs: Sequence[Job]) -> None:
        self._background.call(self._declare(list(jobs)))

    def publish(self, jobs: Sequence[Job], *, rate: float = RATE) -> None:
        self._background.call(self._publish(jobs, rate))

    async def _declare(self, jobs: list[Job]) -> None:
        connection = await Connection.open(self.endpoint)
        channel = await connection.channel()
        await channel.declare_exchange(self.endpoint.exchange)
        await channel.declare_exchange(refused_exchange(self.endpoint.exchange), "fanout")

        async def work(channel: Channel) -> None:
            while jobs:
                job = jobs.pop()
                arguments = job_queue_arguments(
                    job.exchange,
                    queue_type=self.endpoint.queue_type,
                    retention=self.endpoint.retention,
                    server_version=connection.server_version,
                )
                await channel.declare_queue(job.job_queue, arguments=arguments)
                await channel.bind_queue(job.job_queue, job.exchange, job.binding_key)

        await asyncio.gather(*[work(await connection.channel()) for _ in range(DECLARERS)])
        await connection.close()

    async def _publish(self, jobs: Sequence[Job], rate: float) -> None:
        connection = await Connection.open(self.endpoint)
        channel = await connection.channel()
        await channel.confirm()
        began, confirmations = time.monotonic(), []
        for number, job in enumerate(jobs):
            event = Event(Kind.SUCCEEDED, job.job_id, job.source, sequence=1, data={"result": {"accuracy": 0.97}})
            body = encode(event)
            properties = pika.BasicProperties(content_type=CONTENT_TYPE, message_id=event.id, delivery_mode=2)
            await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
            self.published[job.job_id] = time.monotonic()
            confirmations.append(channel.send(job.exchange, job.routing_key("succeeded"), body, properties))
        await asyncio.gather(*confirmations)
        await connection.close()


def rows_in(broker: Broker, table: str) -> int:
    return int(broker.evaluate(f"ets:info({table}, size)"))


def memory_kib(broker: Broker) -> float:
    """The broker's memory, after every process in it has collected its garbage."""
    collect = "[erlang:garbage_collect(P) || P <- processes()], erlang:memory(total)"
    return int(broker.evaluate(collect)) / 1024


class Look:
    """Waits, in the broker itself, until a table of its metrics has so many rows: to 10 ms, and without load."""

    def __init__(self, broker: Broker, table: str, rows: int) -> None:
        self._answer: float | None = None
        self._thread = threading.Thread(target=self._look, args=(broker, table, rows))
        self._thread.start()

    def _look(self, broker: Broker, table: str, rows: int) -> None:
        expression = (
            f"F = fun F(0) -> late; F(N) -> case ets:info({table}, size) >= {rows} of "
            "true -> os:system_time(microsecond); false -> timer:sleep(10), F(N - 1) end end, F(3000)"
        )
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            answer = broker.evaluate(expression)
            if answer != "late":
                self._answer = answer / 1e6
                return

    def result(self) -> float | None:
        """When it was so, in seconds since the epoch; None when it never was."""
        self._thread.join()
        return self._answer


def wait_until(condition: Callable[[], bool], timeout: float = PATIENCE) -> bool:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def measure(implementation: Implementation, count: int, *, idle: float) -> dict[str, Any]:
    """One row."""
    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    row |= {"implementation": implementation.name, "waits": count, "lost": 0}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Broker(folder / "broker") as broker, Waiters(implementation, folder, broker) as waiters:
            jobs = Jobs(broker)
            running = Running(implementation, broker, waiters, jobs)
            pending = [Job.new("benchmark", f"wait_{number}") for number in range(count)]
            running.warm_up()
            rss, broker_memory = waiters.rss_kib, memory_kib(broker)
            if implementation.uses_broker:
                jobs.declare(pending)
            waiters.tell(*[job.to_json() for job in pending])
            running.set_up(row)
            time.sleep(2)
            row["kib_per_wait"] = (waiters.rss_kib - rss) / count
            if implementation.uses_broker:
                row["broker_kib_per_wait"] = (memory_kib(broker) - broker_memory) / count
            cpu = waiters.cpu_s
            time.sleep(idle)
            row["idle_cpu_percent"] = (waiters.cpu_s - cpu) / idle * 100
            # Not rows_in: one that is closed stays in the broker's table for some seconds.
            row["connections"] = [found["state"] for found in broker.connections()].count("running")
            if implementation.uses_broker:
                running.complete(pending, row)
    return row


@dataclass(frozen=True)
class Running:
    """What takes part in a row."""

    implementation: Implementation
    broker: Broker
    waiters: Waiters
    jobs: Jobs

    def warm_up(self) -> None:
        """One wait from beginning to end, so that what is loaded once is loaded."""
        if not self.implementation.uses_broker:
            self.waiters.tell({"start": True})
            self.waiters.hear("started")
            return
        job = Job.new("benchmark", "warm-up")
        self.jobs.declare([job])
        ready = Look(self.broker, self.implementation.ready, 1)
        self.waiters.tell(job.to_json(), {"start": True})
        self.waiters.hear("started")
        if ready.result() is None:
            raise RuntimeError(f"A first wait came to nothing:\n{self.waiters.log.read_text()[-3000:]}")
        self.jobs.publish([job])
        # Until its connection is closed, too.
        if not wait_until(lambda: job.job_id in self.waiters.fired and rows_in(self.broker, CONNECTIONS) == 0):
            raise RuntimeError(f"A first wait did not end:\n{self.waiters.log.read_text()[-3000:]}")

    def set_up(self, row: dict[str, Any]) -> None:
        """Start the waits that were named."""
        look = None
        if self.implementation.uses_broker:
            look = Look(self.broker, self.implementation.ready, row["waits"])
            # The command needs a second to start, and most of a core.
            time.sleep(2)
        cpu, began, clock = self.waiters.cpu_s, time.time(), time.monotonic()
        self.waiters.tell({"start": True})
        self.waiters.hear("started")
        if look is None:
            row["setup_s"] = time.monotonic() - clock
        else:
            at = look.result()
            row["setup_s"] = None if at is None else at - began
        row["setup_cpu_s"] = self.waiters.cpu_s - cpu

    def complete(self, pending: Sequence[Job], row: dict[str, Any]) -> None:
        """Some complete; the broker is restarted; the others complete."""
        broker, fired, published = self.broker, self.waiters.fired, self.jobs.published
        some = max(1, len(pending) // 10)
        first, second, rest = pending[:some], pending[some : 2 * some], pending[2 * some :]
        self.jobs.publish(first)
        wait_until(lambda: all(job.job_id in fired for job in first), timeout=30)
        times = [fired[job.job_id] - published[job.job_id] for job in first if job.job_id in fired]
        if times:
            row["p50_ms"], row["p99_ms"] = percentile(times, 50) * 1000, percentile(times, 99) * 1000
        # Until their triggers are cancelled, and their consumers gone.
        wait_until(lambda: rows_in(broker, self.implementation.ready) <= len(pending) - some, timeout=30)
        self.waiters.tell({"keep": True})
        broker.stop()
        broker.start()
        back = time.time()
        expected = len(pending) - some - (0 if self.implementation.holds else some)
        look = Look(broker, self.implementation.ready, expected)
        self.jobs.publish(second, rate=1e6)
        at = look.result()
        row["reconnect_s"] = None if at is None else at - back
        self.jobs.publish(rest, rate=5 * RATE)
        wait_until(lambda: all(job.job_id in fired for job in pending), timeout=60)
        row["lost"] = sum(job.job_id not in fired for job in pending)


def ratios(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """How many times more than this package's trigger each of the others takes, for as many waits."""
    ours = {row["waits"]: row for row in rows if row["implementation"].startswith(IMPLEMENTATIONS[0].distribution)}
    found = []
    for row in rows:
        base = ours.get(row["waits"])
        if base is None or base is row:
            continue
        ratio: dict[str, Any] = {"implementation": f"{row['implementation']}: times ours", "waits": row["waits"]}
        for name in COLUMNS[2:-1]:
            ratio[name] = row[name] / base[name] if row[name] is not None and base[name] else None
        found.append(ratio)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--waits", type=int, nargs="+", default=[100, 1_000, 10_000])
    parser.add_argument("--only", nargs="+", choices=[each.key for each in IMPLEMENTATIONS], help="whose triggers")
    parser.add_argument("--idle", type=float, default=20.0, help="seconds over which idle CPU is measured")
    parser.add_argument("--json", action="store_true", help="one JSON object a row")
    options = parser.parse_args()
    rows = []
    for implementation in IMPLEMENTATIONS:
        if options.only and implementation.key not in options.only:
            continue
        if not implementation.python.exists():
            print(f"{implementation.environment} is not there (stack/peers.sh makes it): left out.", file=sys.stderr)
            continue
        for count in options.waits:
            if count <= implementation.most:
                row = measure(implementation, count, idle=options.idle)
                rows.append(row)
                if options.json:
                    show([row], as_json=True)
                else:
                    print(f"{row['implementation']}: {count} waits measured.", file=sys.stderr)
    if not options.json:
        show([*rows, *ratios(rows)], as_json=False)


if __name__ == "__main__":
    main()
