"""Jobs that last until they are told to end, so that test_links.py can follow their links meanwhile."""

from __future__ import annotations

import os
from pathlib import Path

from airflow.sdk import DAG, Param

from airflow_rabbitmq_spark.operators.spark_job import SparkJobOperator

APPLICATIONS = Path(os.environ.get("TEST_APPLICATIONS", "/"))

with DAG("links", schedule=None, catchup=False, params={"go": Param("", type="string")}):
    for task_id, deferrable in (("deferred", True), ("in_worker", False)):
        SparkJobOperator(
            task_id=task_id,
            application=str(APPLICATIONS / "linked.py"),
            application_args=["{{ params.go }}"],
            rabbitmq_conn_id="rabbitmq_with_page",
            deferrable=deferrable,
            driver_memory="512m",
            executor_memory="512m",
            total_executor_cores=1,
        )
