"""Jobs that end in every way there is; the tests in test_spark_jobs.py run them, each with parameters of its own."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, Param

from airflow_rabbitmq_spark.operators.spark_job import SparkJobOperator

APPLICATIONS = Path(os.environ.get("TEST_APPLICATIONS", "/"))


def dag_of(dag_id: str, application: str, arguments: list[str], **more: Any) -> DAG:
    """A DAG with one job. Its parameters are what a run hands to the application."""
    with DAG(
        dag_id,
        schedule=None,
        catchup=False,
        params={"notes": Param("", type="string"), "go": Param("", type="string")},
    ) as dag:
        SparkJobOperator(
            **{
                "task_id": "job",
                "application": str(APPLICATIONS / application),
                "application_args": arguments,
                "driver_memory": "512m",
                "executor_memory": "512m",
                "lost_grace": 1,
                "cancel_grace": 15,
                "delivery_timeout": 5,
                **more,
            }
        )
    return dag


LASTING = ["{{ params.notes }}", "{{ params.go }}"]

returns = dag_of("job_returns", "ending.py", ["result", "{{ dag.dag_id }}", "a b"])
says_nothing = dag_of("job_says_nothing", "ending.py", ["nothing"])
fails = dag_of("job_fails", "ending.py", ["raise"])
missing = dag_of("job_missing", "there-is-no-such.py", [])
lasts = dag_of("job_lasts", "lasting.py", LASTING)
in_worker = dag_of("job_in_worker", "lasting.py", LASTING, deferrable=False)
retried = dag_of("job_retried", "lasting.py", LASTING, deferrable=False, retries=1, retry_delay=timedelta(seconds=12))
times_out = dag_of("job_times_out", "lasting.py", LASTING, execution_timeout=timedelta(seconds=60))
#: More memory than the Spark worker offers: it never starts.
never_starts = dag_of("job_never_starts", "lasting.py", LASTING, start_timeout=12, driver_memory="900g")
#: A connection that is nowhere.
no_connection = dag_of("job_without_connection", "lasting.py", LASTING, rabbitmq_conn_id="nowhere")
