"""The plugin that Airflow loads in every process, through the entry point ``airflow.plugins``.

It is off by default, and then imports nothing and registers nothing.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk.plugins_manager import AirflowPlugin

SECTION = "rabbitmq_listener"


class RabbitMQListenerPlugin(AirflowPlugin):
    """Publishes DAG-run and task events to RabbitMQ, where ``[rabbitmq_listener] enabled`` says so."""

    name = "rabbitmq_listener"
    listeners: list[Any] = []  # noqa: RUF012 - as Airflow declares it

    @classmethod
    def on_load(cls, *_args: Any, **_kwargs: Any) -> None:
        """Register the listener. Airflow calls this more than once in a process; there is one listener.

        :raises ConfigurationError: an option in the section is wrong. Airflow logs it, and goes on without the listener.
        """
        from airflow.sdk.configuration import conf

        if cls.listeners or not conf.getboolean(SECTION, "enabled", fallback=False):
            return
        from airflow_rabbitmq_spark.listeners.listener import RabbitMQListener
        from airflow_rabbitmq_spark.listeners.settings import Settings

        cls.listeners = [RabbitMQListener(Settings.read(conf))]
