"""Uses all that a submission can hand over, on the driver and on an executor, and reports it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from pyspark import SparkFiles
from pyspark.sql import SparkSession

from airflow_rabbitmq_spark.job import open_job


def on_executor(_: int) -> str:
    import handed_over

    return f"{handed_over.NAME} {Path(SparkFiles.get('data.txt')).read_text()}"


with open_job() as job:
    job.progress(0.25, "starting Spark")
    spark = SparkSession.builder.getOrCreate()
    context = spark.sparkContext
    import handed_over

    job.progress(0.5, "on the executor", rows=1)
    there = context.parallelize([1], 1).map(on_executor).collect()
    job.progress(1.0, "done", accuracy=0.5)
    job.result(
        {
            "arguments": sys.argv[1:],
            "py_files": handed_over.NAME,
            "files": Path(SparkFiles.get("data.txt")).read_text(),
            "executor": there,
            "conf": spark.conf.get("spark.test.setting"),
            "env": os.environ["TEST_SETTING"],
            "name": context.appName,
            "application_id": context.applicationId,
            "pid": os.getpid(),
        }
    )
    spark.stop()
