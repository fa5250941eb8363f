"""Publishes in every way there is; test_publish.py reads what arrives."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import DAG, AsyncCallback, DeadlineAlert, DeadlineReference, task

from airflow_rabbitmq_spark.notifications.rabbitmq import RabbitMQNotifier
from airflow_rabbitmq_spark.operators.rabbitmq import RabbitMQPublishOperator

if TYPE_CHECKING:
    from collections.abc import Iterator

QUEUE = "tests.publish"


def tell(what: str, **arguments: Any) -> RabbitMQNotifier:
    return RabbitMQNotifier(**{"routing_key": QUEUE, "message": what, **arguments})


def three(context: Any, jinja_env: Any) -> Iterator[dict[str, Any]]:
    return ({"function": n, "run": context["run_id"]} for n in range(3))


with DAG(
    "publish_story",
    schedule=None,
    catchup=False,
    deadline=DeadlineAlert(
        reference=DeadlineReference.DAGRUN_QUEUED_AT,
        interval=timedelta(seconds=1),
        # Told by the triggerer, where nothing may block.
        callback=AsyncCallback(
            RabbitMQNotifier,
            kwargs={
                "routing_key": QUEUE,
                "message": "late: {{ dag_run.dag_id }}",
                "cloudevent": {"type": "tests.late"},
            },
        ),
    ),
):

    @task
    def make() -> list[Any]:
        return [{"made": 1}, "made 2"]

    made = make()
    RabbitMQPublishOperator(
        task_id="many",
        routing_key=QUEUE,
        messages=made,
        on_success_callback=tell("succeeded: {{ ti.task_id }}", headers={"run": "{{ run_id }}"}),
    )
    made >> RabbitMQPublishOperator(
        task_id="one",
        routing_key="tests.{{ 'publish' }}",
        message={"run": "{{ run_id }}", "made": "{{ ti.xcom_pull('make') | length }}"},
        headers={"dag": "{{ dag.dag_id }}"},
        properties={"correlation_id": "{{ run_id }}", "priority": "{{ ti.try_number }}"},
        cloudevent={"type": "tests.{{ task.task_id }}"},
    )
    RabbitMQPublishOperator(task_id="function", routing_key=QUEUE, messages=three)
    RabbitMQPublishOperator.partial(task_id="mapped", routing_key=QUEUE).expand(message=["mapped 0", "mapped 1"])
    RabbitMQPublishOperator(
        task_id="unroutable",
        routing_key="tests.nobody-listens",
        message="x",
        on_failure_callback=tell("failed: {{ exception }}"),
    )

    @task(on_success_callback=[tell("x", rabbitmq_conn_id="rabbitmq_away"), tell("the next callback")])
    def untouched() -> str:
        return "success"

    untouched()
