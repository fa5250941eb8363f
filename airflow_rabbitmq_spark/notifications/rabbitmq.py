"""Notifiers that publish to RabbitMQ: for ``on_success_callback``, ``on_failure_callback`` and their like."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseNotifier

from airflow_rabbitmq_spark.hooks.rabbitmq import RabbitMQHook

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from airflow.sdk import Context


class RabbitMQNotifier(BaseNotifier):
    """Publish a message when something happened to a task or a DAG run.

    Confirmed and mandatory: what could not be delivered is an error in the callback's log. All arguments are templated::

        on_failure_callback = RabbitMQNotifier(
            exchange="alerts",
            routing_key="airflow.{{ dag.dag_id }}.failed",
            message={"task": "{{ ti.task_id }}", "run": "{{ run_id }}"},
        )

    :param exchange: the exchange; the default one, which knows queues by name, when empty.
    :param routing_key: the routing key, or the queue's name for the default exchange.
    :param message: text, or what is sent as JSON.
    :param headers: of the message.
    :param mandatory: fail when no queue is bound for the message.
    :param rabbitmq_conn_id: the broker.
    """

    template_fields: Sequence[str] = ("exchange", "routing_key", "message", "headers", "rabbitmq_conn_id")

    def __init__(
        self,
        *,
        routing_key: str,
        message: Any,
        exchange: str = "",
        headers: Mapping[str, Any] | None = None,
        mandatory: bool = True,
        rabbitmq_conn_id: str = "rabbitmq_default",
        context: Context | None = None,
    ) -> None:
        super().__init__(context)
        self.exchange = exchange
        self.routing_key = routing_key
        self.message = message
        self.headers = headers
        self.mandatory = mandatory
        self.rabbitmq_conn_id = rabbitmq_conn_id

    def notify(self, context: Context) -> None:  # noqa: ARG002 - the arguments are rendered with it already
        """Publish, and wait until the broker has the message."""
        self._publish(RabbitMQHook(self.rabbitmq_conn_id))

    async def async_notify(self, context: Context) -> None:  # noqa: ARG002 - likewise
        """Publish without blocking the event loop."""
        await asyncio.to_thread(self._publish, RabbitMQHook(self.rabbitmq_conn_id))

    def _publish(self, hook: RabbitMQHook) -> None:
        hook.publish(
            self.routing_key,
            self.message,
            exchange=self.exchange,
            headers=self.headers,
            mandatory=self.mandatory,
        )
