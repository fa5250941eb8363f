"""Many short jobs at once; benchmarks/early_event.py runs it."""

from __future__ import annotations

from airflow.sdk import dag

from airflow_rabbitmq_spark.operators.spark_job import SparkJobOperator


@dag(schedule=None, catchup=False, params={"jobs": 32})
def early() -> None:
    from airflow.sdk import task

    @task
    def numbers(params: dict | None = None) -> list[list[str]]:
        return [[str(number)] for number in range(int((params or {})["jobs"]))]

    SparkJobOperator.partial(task_id="job", application="/nowhere.py", retries=0, max_active_tis_per_dagrun=32).expand(
        application_args=numbers()
    )


early()
