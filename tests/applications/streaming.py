"""Structured streaming that reports each micro-batch: the files of a folder, one a batch, counted."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from pyspark.sql import SparkSession

from airflow_rabbitmq_spark.job import open_job

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

folder, checkpoint, batches = sys.argv[1], sys.argv[2], int(sys.argv[3])

with open_job() as job:
    spark = SparkSession.builder.getOrCreate()
    counts: list[int] = []

    def one_batch(frame: DataFrame, number: int) -> None:
        counts.append(frame.count())
        job.progress((number + 1) / batches, f"micro-batch {number}", rows=counts[-1], total=sum(counts))

    query = (
        spark.readStream.format("text")
        .option("maxFilesPerTrigger", 1)
        .load(folder)
        .writeStream.foreachBatch(one_batch)
        .option("checkpointLocation", checkpoint)
        .trigger(availableNow=True)
        .start()
    )
    query.awaitTermination()
    job.result(counts)
    spark.stop()
