"""Does a push ever outrun Airflow? Many deferrals whose events come 0 to 15 s after the submission, 32 at a time.

    .venv/bin/python -m benchmarks.early_event --jobs 1000

Real Airflow, real RabbitMQ; the Spark master is pretended, so that what is loaded is Airflow. Prints how many tasks
failed, and exits with 1 if any did.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

from stack.airflow import Airflow
from stack.broker import Broker
from stack.pretend_spark import PretendSpark


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1000)
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
            run_id = airflow.trigger("early", jobs=options.jobs)
            state = airflow.wait_for_run("early", run_id, timeout=20 + options.jobs * 5)
            took = time.monotonic() - began
            failed, offset = [], 0
            while True:
                page = airflow.api(
                    "GET",
                    f"dags/early/dagRuns/{run_id}/taskInstances",
                    params={"limit": 100, "offset": offset, "task_id": "job"},
                )["task_instances"]
                failed += [task for task in page if task["task_id"] == "job" and task["state"] != "success"]
                offset += len(page)
                if len(page) < 100:
                    break
            outran = (
                (airflow.directory / "scheduler.log").read_text(errors="replace").count("state attribute is queued")
            )
            left = {name for name in broker.queues() if ".job." in name or ".will." in name}
    print(f"deferrals {spark.submitted}  not successful {len(failed)}  outrun {outran}  queues left {len(left)}")
    print(f"run {state} in {took:.0f} s, seed {options.seed}")
    return 1 if failed or outran or state != "success" else 0


if __name__ == "__main__":
    sys.exit(main())
