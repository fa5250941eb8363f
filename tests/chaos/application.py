"""What stack/chaos.py runs: it writes down when it begins and when it comes to its end."""

from __future__ import annotations

import os
import sys
import time
import uuid
from pathlib import Path

from airflow_rabbitmq_spark.job import open_job

path, seconds = Path(sys.argv[1]), float(sys.argv[2])
token = uuid.uuid4().hex


def note(what: str) -> None:
    with path.open("a") as file:
        file.write(f"{what} {token} {os.getpid()} {time.time():.3f}\n")


with open_job() as job:
    note("begin")
    steps = max(1, round(seconds * 5))
    for step in range(steps):
        time.sleep(seconds / steps)
        job.progress((step + 1) / steps, f"step {step + 1} of {steps}")
    job.result({"token": token})
    note("end")
