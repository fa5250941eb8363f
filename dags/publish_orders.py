"""Publish a day's orders to RabbitMQ as CloudEvents; the task succeeds when the broker has every one of them."""

from __future__ import annotations

from typing import Any

from airflow.sdk import dag, task

from airflow_rabbitmq_spark.hooks.rabbitmq import RabbitMQHook
from airflow_rabbitmq_spark.notifications.rabbitmq import RabbitMQNotifier
from airflow_rabbitmq_spark.operators.rabbitmq import RabbitMQPublishOperator

EXCHANGE = QUEUE = "example.orders"


@dag(schedule=None, catchup=False, tags=["rabbitmq"], doc_md=__doc__)
def publish_orders() -> None:
    """Three tasks: orders, their publication, and somebody who handles them."""

    @task
    def collect() -> list[dict[str, Any]]:
        """Find the orders; and see to it that somebody listens, or publishing them would fail."""
        with RabbitMQHook() as hook:
            hook.declare_exchange(EXCHANGE)
            hook.declare_queue(QUEUE)
            hook.bind_queue(QUEUE, EXCHANGE, "orders.*")
        return [{"order": number, "amount": 10 * number} for number in range(1, 4)]

    announce = RabbitMQPublishOperator(
        task_id="announce",
        exchange=EXCHANGE,
        routing_key="orders.placed",
        messages=collect(),
        cloudevent={"type": "com.example.order.placed", "subject": "{{ run_id }}"},
        headers={"dag": "{{ dag.dag_id }}"},
        on_failure_callback=RabbitMQNotifier(
            exchange="amq.topic",
            routing_key="alerts.orders",
            message="The orders of {{ run_id }} were not published: {{ exception }}",
            mandatory=False,
        ),
    )

    @task
    def handle() -> int:
        """Handle what has come in."""
        with RabbitMQHook() as hook:
            return hook.consume(QUEUE, lambda message: print(message.body.decode()), idle_timeout=1)

    announce >> handle()


publish_orders()
