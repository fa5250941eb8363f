"""The DAGs of stack/chaos.py: one job, with short patience, so that a round of chaos is short too."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

from airflow.sdk import dag

from airflow_rabbitmq_spark.operators.spark_job import SparkJobOperator


def job(**more: Any) -> None:
    SparkJobOperator(
        task_id="job",
        application=os.environ.get("CHAOS_APPLICATION", "application.py"),
        application_args=["{{ params.file }}", "{{ params.seconds }}"],
        driver_memory="512m",
        start_timeout=90,
        lost_grace=30,
        cancel_grace=8,
        delivery_timeout=120,
        **more,
    )


@dag(schedule=None, catchup=False, params={"file": "", "seconds": 5.0})
def chaos() -> None:
    job(retries=8, retry_delay=timedelta(seconds=12))


@dag(schedule=None, catchup=False, params={"file": "", "seconds": 60.0})
def chaos_timeout() -> None:
    job(retries=0, execution_timeout=timedelta(seconds=25))


chaos()
chaos_timeout()
