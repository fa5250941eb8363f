"""Computes for some seconds on the cluster, and notes when it was done. It knows nothing of who runs it."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from pyspark.sql import SparkSession


def compute(seconds: float) -> int:
    end, rounds = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        rounds += sum(range(1000)) > 0
    return rounds


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--notes", type=Path, required=True, help="a folder for the notes: started, ended")
    options = parser.parse_args()
    spark = SparkSession.builder.getOrCreate()
    (options.notes / "started").write_text(str(time.time()))
    spark.sparkContext.parallelize([options.seconds], 1).map(compute).collect()
    spark.stop()
    (options.notes / "ended").write_text(str(time.time()))
