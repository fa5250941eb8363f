"""Wait for one order to be paid, and ship it; while it waits, no worker slot is held and nothing is polled."""

from __future__ import annotations

from typing import Any

from airflow.sdk import dag, task

from airflow_rabbitmq_spark.hooks.rabbitmq import RabbitMQHook
from airflow_rabbitmq_spark.sensors.rabbitmq import RabbitMQSensor

EXCHANGE = "example.payments"
QUEUE = "example.payments.await_orders"


@dag(schedule=None, catchup=False, tags=["rabbitmq"], doc_md=__doc__)
def await_orders() -> None:
    """A sensor between what makes its queue and what goes on with its message; another task plays the customer."""

    @task
    def prepare() -> None:
        """A queue of our own, which gets what we wait for and nothing else: the exchange chooses by the routing key."""
        with RabbitMQHook() as hook:
            hook.declare_exchange(EXCHANGE)
            hook.declare_queue(QUEUE)
            hook.bind_queue(QUEUE, EXCHANGE, "orders.paid")

    paid = RabbitMQSensor(
        task_id="paid",
        queue_name=QUEUE,
        match={"body.run": "{{ run_id }}", "headers.currency": ["EUR", "GBP"]},
        timeout=300,
    )

    @task
    def pay(run_id: str | None = None) -> None:
        """What is somebody else's system in life."""
        with RabbitMQHook() as hook:
            hook.publish("orders.seen", {"run": run_id}, exchange=EXCHANGE, mandatory=False)
            hook.publish("orders.paid", {"run": run_id, "order": 7}, exchange=EXCHANGE, headers={"currency": "EUR"})

    @task
    def ship(message: dict[str, Any]) -> int:
        """The message is what the sensor returns."""
        order: int = message["body"]["order"]
        print(f"shipping order {order}, paid at {message['timestamp'] or 'some time'}")
        return order

    ready = prepare()
    ready >> paid
    ready >> pay()
    ship(paid.output)  # type: ignore[arg-type]  # an XComArg is the value once the task runs


await_orders()
