"""The same application by two operators, and a task behind it; benchmarks/completion.py runs it."""

from __future__ import annotations

import os
from pathlib import Path

from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator
from airflow.sdk import DAG, task

from airflow_rabbitmq_spark.operators.spark_job import SparkJobOperator

APPLICATION = str(Path(__file__).parent.parent / "applications" / "compute.py")
ARGUMENTS = [
    "--seconds",
    "{{ dag_run.conf['seconds'] }}",
    "--notes",
    "{{ dag_run.conf['notes'] }}",
]


@task
def downstream() -> None:
    """Starts when the application's end has come through."""


if "SPARK_HOME" in os.environ:
    with DAG("completion_submit", schedule=None, catchup=False):
        (
            SparkSubmitOperator(
                task_id="run", application=APPLICATION, application_args=ARGUMENTS, conn_id="spark_submit", retries=0
            )
            >> downstream()
        )

with DAG("completion_job", schedule=None, catchup=False):
    SparkJobOperator(task_id="run", application=APPLICATION, application_args=ARGUMENTS, retries=0) >> downstream()

with DAG("completion_job_soon", schedule=None, catchup=False):
    (
        SparkJobOperator(task_id="run", application=APPLICATION, application_args=ARGUMENTS, lost_grace=1.0, retries=0)
        >> downstream()
    )
