"""Has a SparkContext, and so a Spark UI, until a file appears: ``linked.py GO``."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from pyspark.sql import SparkSession

from airflow_rabbitmq_spark.job import open_job

go = Path(sys.argv[1])

with open_job() as job:
    spark = SparkSession.builder.getOrCreate()
    while not go.exists():
        time.sleep(0.1)
    job.result(spark.sparkContext.applicationId)
    spark.stop()
