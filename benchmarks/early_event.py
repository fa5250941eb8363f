"""Does a push ever outrun Airflow? Many deferrals whose events come 0 to 15 s after they began, 32 at a time.

    .venv/bin/python -m benchmarks.early_event --jobs 500 --sensors 500

Half are jobs of the operator, half are sensors. Real Airflow, real RabbitMQ; the Spark master is pretended, so that what
is loaded is Airflow. Prints how many tasks failed, and how many messages and queues were left behind; exits with 1 if a
task failed.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stack.airflow import Airflow
from stack.broker import Broker
from stack.pretend_spark import PretendSpark

if TYPE_CHECKING:
    from collections.abc import Iterator


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=500)
    parser.add_argument("--sensors", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--latest", type=float, default=15.0, help="seconds after the submission at the most")
    options = parser.parse_args()
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (
            Broker(folder / "broker") as broker,
            PretendSpark(broker.endpoint(), lambda: chance.uniform(0, options.latest)) as spark,
            Airflow(
                folder / "airflow",
                dags=Path(__file__).parent / "dags",
                connections={"rabbitmq_default": broker.connection(), "spark_default": spark.connection()},
                environment={"AIRFLOW__CORE__MAX_MAP_LENGTH": "100000"},
            ) as airflow,
        ):
            began = time.monotonic()
            run_id = airflow.trigger("early", jobs=options.jobs, sensors=options.sensors, latest=options.latest)
            timeout = 60 + (options.jobs + options.sensors) * 5
            state = airflow.wait_for_run("early", run_id, timeout=timeout)
            took = time.monotonic() - began
            tasks = list(task_instances(airflow, run_id))
            log = (airflow.directory / "scheduler.log").read_text(errors="replace")
            outran = log.count("state attribute is queued")
            deferred = count_deferrals(airflow.directory)
            # The receipt of the last sensors is still being read.
            time.sleep(30)
            queues = broker.queue_sizes()
    failed = [task for task in tasks if task["state"] != "success"]
    left = {name for name in queues if ".job." in name or ".will." in name}
    print(f"run {state} in {took:.0f} s, seed {options.seed}, events 0 to {options.latest:g} s after the wait began")
    print("| waits | tasks | deferred | not successful |\n|---|---|---|---|")
    for kind in ("job", "sensor"):
        count = sum(task["task_id"] == kind for task in tasks)
        bad = sum(task["task_id"] == kind for task in failed)
        print(f"| {kind} | {count} | {deferred.get(kind, 0)} | {bad} |")
    print(
        f"outrun {outran}, job queues left {len(left)}, messages left unacknowledged or unread {sum(queues.values())}"
    )
    return 1 if failed or outran or state != "success" else 0


def task_instances(airflow: Airflow, run_id: str) -> Iterator[dict[str, Any]]:
    """The task instances of a run."""
    offset = 0
    while True:
        answer = airflow.api(
            "GET", f"dags/early/dagRuns/{run_id}/taskInstances", params={"limit": 100, "offset": offset}
        )
        yield from answer["task_instances"]
        offset += len(answer["task_instances"])
        if len(answer["task_instances"]) < 100:
            return


def count_deferrals(home: Path) -> Counter[str]:
    """How many waits of each task reached the triggerer: each has a log of its own there."""
    return Counter(
        next(part.removeprefix("task_id=") for part in path.parts if part.startswith("task_id="))
        for path in (home / "logs").rglob("*.trigger.*.log")
    )


if __name__ == "__main__":
    sys.exit(main())
