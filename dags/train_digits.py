"""Train a model on Spark, be told the moment it is done, and go on with the result."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from airflow.sdk import dag, task

from airflow_rabbitmq_spark.notifications.rabbitmq import RabbitMQNotifier
from airflow_rabbitmq_spark.operators.spark_job import SparkJobOperator

HERE = Path(__file__).parent
MODELS = os.environ.get("MODELS_DIR", str(Path(tempfile.gettempdir()) / "models"))


def tell(state: str) -> RabbitMQNotifier:
    """Publish a task's end for whoever listens; every broker has the exchange ``amq.topic``."""
    return RabbitMQNotifier(
        exchange="amq.topic",
        routing_key="airflow.{{ dag.dag_id }}.{{ ti.task_id }}." + state,
        message={"run_id": "{{ run_id }}", "task_id": "{{ ti.task_id }}", "state": state},
        mandatory=False,
    )


@dag(
    schedule=None,
    catchup=False,
    tags=["spark", "rabbitmq"],
    doc_md=__doc__,
    default_args={"on_success_callback": tell("success"), "on_failure_callback": tell("failed")},
)
def train_digits() -> None:
    """Two tasks: the training on Spark, and a report that reads its result."""
    train = SparkJobOperator(
        task_id="train",
        application=str(HERE / "jobs" / "train_digits.py"),
        application_args=["--models", MODELS],
        driver_memory="1g",
        executor_memory="1g",
    )

    @task
    def report(result: dict[str, Any]) -> str:
        summary = f"accuracy {result['accuracy']:.4f}, model in {result['model']}"
        print(summary)
        return summary

    report(train.output)  # type: ignore[arg-type]  # an XComArg is the value once the task runs


train_digits()
