"""Many short waits at once; benchmarks/early_event.py runs it."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from airflow.sdk import dag

from airflow_rabbitmq_spark.hooks.rabbitmq import RabbitMQHook
from airflow_rabbitmq_spark.operators.spark_job import SparkJobOperator
from airflow_rabbitmq_spark.sensors.rabbitmq import RabbitMQSensor

if TYPE_CHECKING:
    from airflow.sdk import Context


class EarlySensor(RabbitMQSensor):
    """Has its message sent to it ``latest`` seconds from now at the most; the broker is the clock."""

    def execute(self, context: Context) -> Any:
        with RabbitMQHook() as hook:
            hook.declare_queue(self.queue_name, arguments={"x-expires": 3_600_000})
            delay = int(random.uniform(0, float(context["params"]["latest"])) * 1000)
            hook.declare_queue(
                f"{self.queue_name}.delay",
                arguments={
                    "x-message-ttl": delay,
                    "x-expires": delay + 60_000,
                    "x-dead-letter-exchange": "",
                    "x-dead-letter-routing-key": self.queue_name,
                },
            )
            hook.publish(f"{self.queue_name}.delay", {"delay": delay})
        return super().execute(context)


@dag(schedule=None, catchup=False, params={"jobs": 16, "sensors": 16, "latest": 15.0})
def early() -> None:
    from airflow.sdk import task

    @task
    def numbers(params: dict | None = None) -> list[list[str]]:
        return [[str(number)] for number in range(int((params or {})["jobs"]))]

    @task
    def queues(params: dict | None = None) -> list[str]:
        return [f"early.{number}" for number in range(int((params or {})["sensors"]))]

    SparkJobOperator.partial(task_id="job", application="/nowhere.py", retries=0, max_active_tis_per_dagrun=32).expand(
        application_args=numbers()
    )
    EarlySensor.partial(task_id="sensor", retries=0, max_active_tis_per_dagrun=32).expand(queue_name=queues())


early()
