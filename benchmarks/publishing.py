"""How fast are messages published, beside what one would use instead?

    .venv/bin/python -m benchmarks.publishing [--rounds 5] [--json] [--windows 2000 5000 10000]

Persistent messages of 1 KiB to one durable classic queue, mandatory and confirmed where the client can, over TLS where it
can, all on the same broker in the same run. Every client has a process of its own; in each round they take turns.
``ratio`` is a client's best round against the best of the fastest other client that also confirms, in the same mode. The
other providers need ``stack/peers.sh``, which makes their environments; without it they are left out. ``client_us`` and
``broker_us``: CPU of the client's process and of the broker's a message, in microseconds, the median of all rounds; the
broker's is counted in hundredths of a second, which is nothing for few messages.

With ``--windows`` only those that bound a batch by a number are measured, with each of these numbers.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from airflow_rabbitmq_spark.amqp.blocking import Operations
from benchmarks.tables import show
from stack.broker import Broker
from stack.processes import base_environment, cpu_seconds

ROOT = Path(__file__).parent.parent
OURS = "RabbitMQHook (this package)"

#: What is measured: name, client in publishers.py, environment, and how many messages a round has in each mode. Few where
#: each message costs a connection.
CLIENTS: tuple[tuple[str, str, str, dict[str, int]], ...] = (
    (OURS, "ours", ".venv", {"one by one": 1_000, "batched": 20_000}),
    ("pika BlockingConnection", "pika-blocking", ".venv", {"one by one": 1_000}),
    ("pika asyncio, window by hand", "pika-window", ".venv", {"batched": 20_000}),
    ("aio-pika", "aio-pika", ".venv-peers", {"one by one": 1_000, "batched": 20_000}),
    ("apache-airflow-provider-rabbitmq 5.1.0", "provider-5.1.0", ".venv-peers", {"one by one": 50, "batched": 1_000}),
    ("airflow-provider-rabbitmq 0.6.1", "provider-0.6.1", ".venv-peers", {"one by one": 50}),
    ("airflow-provider-rmq 2.6.0 (on Airflow 2.11)", "provider-rmq-2.6.0", ".venv-peers-rmq", {"one by one": 1_000}),
)


#: Those of them that take how many messages of a batch may be unconfirmed.
WINDOWED = ("ours", "pika-window", "aio-pika")


class Publisher:
    """A client's process."""

    def __init__(self, name: str, client: str, environment: str, counts: dict[str, int], home: Path) -> None:
        self.name = name
        self.counts = counts
        #: By mode, for each round: seconds, and microseconds of CPU a message, of the client and of the broker.
        self.found: dict[str, list[tuple[float, float, float]]] = {mode: [] for mode in counts}
        home.mkdir()
        self._process = subprocess.Popen(
            [str(ROOT / environment / "bin" / "python"), str(ROOT / "benchmarks" / "publishers.py"), client],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=base_environment(PYTHONPATH=str(ROOT), AIRFLOW_HOME=str(home), PYTHONWARNINGS="ignore"),
        )

    def ask(self, order: dict[str, Any]) -> dict[str, Any]:
        """Say something and wait for the answer."""
        assert self._process.stdin
        assert self._process.stdout
        try:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
            answer: dict[str, Any] = json.loads(self._process.stdout.readline() or "{}")
        except BrokenPipeError:
            answer = {}
        return answer or {"problem": "ended without an answer"}

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


def measure(broker: Broker, folder: Path, rounds: int, windows: list[int]) -> list[dict[str, Any]]:
    """The rows of the table."""
    clients: list[tuple[str, str, str, dict[str, int], int | None]] = [(*each, None) for each in CLIENTS]
    if windows:
        clients = [
            (f"{name}: {window} unconfirmed", client, environment, {"batched": counts["batched"]}, window)
            for window in windows
            for name, client, environment, counts in CLIENTS
            if client in WINDOWED
        ]
    (node,) = broker.process.pids(containing="/beam.smp ")
    where = {
        "host": broker.host,
        "port": broker.port,
        "plain_port": broker.plain_port,
        "user": broker.user,
        "password": broker.password,
        "ca_file": str(broker.ca_file),
        "queue": "benchmark",
    }
    publishers: list[tuple[Publisher, dict[str, Any]]] = []
    rows: list[dict[str, Any]] = []
    try:
        with Operations(broker.endpoint()) as operations:
            operations.declare_queue("benchmark")
            for name, client, environment, counts, window in clients:
                if not (ROOT / environment / "bin" / "python").exists():
                    rows.append({"implementation": name, "note": f"{environment} is not built: stack/peers.sh"})
                    continue
                publisher = Publisher(name, client, environment, counts, folder / f"{client}{window or ''}")
                publishers.append((publisher, publisher.ask({**where, "window": window})))
            for number in range(rounds + 1):
                for mode in ("one by one", "batched"):
                    for publisher, said in publishers:
                        if mode not in publisher.counts or "problem" in said:
                            continue
                        before, count = cpu_seconds(node), publisher.counts[mode]
                        answer = publisher.ask({"mode": mode, "messages": count})
                        if "problem" in answer:
                            said.update(answer)
                        elif number:  # the first round warms up
                            cpu = (answer["cpu"], cpu_seconds(node) - before)
                            publisher.found[mode].append((answer["seconds"], *(each / count * 1e6 for each in cpu)))
                        # What a client without confirms has handed over may still be on its way.
                        operations.purge_queue("benchmark")
    finally:
        for publisher, _ in publishers:
            publisher.stop()
    for publisher, said in publishers:
        if "problem" in said:
            rows.append({"implementation": publisher.name, "note": said["problem"]})
            continue
        for mode, found in publisher.found.items():
            rates = [publisher.counts[mode] / seconds for seconds, _, _ in found]
            rows.append(
                {
                    "mode": mode,
                    "implementation": publisher.name,
                    "confirmed": "yes" if said["confirmed"] else "no",
                    "tls": "yes" if said["tls"] else "no",
                    "best_per_s": round(max(rates), 1),
                    "median_per_s": round(statistics.median(rates), 1),
                    "client_us": round(statistics.median(client for _, client, _ in found), 1),
                    "broker_us": round(statistics.median(node for _, _, node in found), 1),
                }
            )
    return rows if windows else with_ratios(rows)


def with_ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each row against the fastest other client that also confirms, in the same mode."""
    for row in rows:
        others = [
            other["best_per_s"]
            for other in rows
            if other is not row
            and other.get("mode") == row.get("mode")
            and other.get("confirmed") == "yes"
            and other["implementation"] != row["implementation"]
        ]
        if "mode" in row and others:
            row["ratio"] = round(row["best_per_s"] / max(others), 2)
    return sorted(rows, key=lambda row: (row.get("mode") != "one by one", "mode" not in row, -row.get("best_per_s", 0)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--windows", type=int, nargs="+", default=[], help="how many messages may be unconfirmed")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # The one provider that knows no TLS is measured on plain AMQP, on the same broker.
        with Broker(folder / "broker", plain=True) as broker:
            show(measure(broker, folder, options.rounds, options.windows), as_json=options.json)


if __name__ == "__main__":
    main()
