"""Sensors that tests/airflow/test_sensor.py sends messages to."""

from __future__ import annotations

from airflow.sdk import dag

from airflow_rabbitmq_spark.sensors.rabbitmq import RabbitMQSensor


@dag(schedule=None, catchup=False)
def sensor_story() -> None:
    RabbitMQSensor(task_id="any", queue_name="tests.sensor.any", retries=0)
    RabbitMQSensor(task_id="mine", queue_name="tests.sensor.mine", match={"body.for": "{{ dag.dag_id }}"}, retries=0)
    RabbitMQSensor(task_id="marked", queue_name="tests.sensor.marked", retries=0)
    RabbitMQSensor(task_id="late", queue_name="tests.sensor.late", timeout=1, retries=0)
    RabbitMQSensor(task_id="missing", queue_name="tests.sensor.missing", retries=0)


sensor_story()
