"""Lasts until it is told to stop, or until a file appears; notes in a file what it lives through.

``lasting.py NOTES [GO]``: with GO, the path of a file, it ends with a result once that file is there.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from airflow_rabbitmq_spark.job import open_job

notes, go = Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None


def note(what: str) -> None:
    with notes.open("a") as file:
        file.write(f"{what} {os.getpid()}\n")


with open_job() as job:
    note("begin")
    job.progress(0.5, "half way")
    try:
        while go is None or not go.exists():
            time.sleep(0.1)
    except KeyboardInterrupt:
        note("interrupted")
        raise
    note("end")
    job.result({"pid": os.getpid()})
