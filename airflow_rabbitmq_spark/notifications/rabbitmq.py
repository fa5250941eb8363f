"""Notifiers that publish to RabbitMQ: for ``on_success_callback``, ``on_failure_callback`` and their like."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseNotifier

from airflow_rabbitmq_spark.hooks.rabbitmq import RabbitMQHook

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from airflow.sdk import Context


class RabbitMQNotifier(BaseNotifier):
    """Publish a message when something happened to a task or a DAG run.

    Confirmed and mandatory: what could not be delivered is an error in the callback's log, with the reason. As with
    every notifier of Airflow's, it changes nothing about the task. All arguments are templated::

        on_failure_callback = RabbitMQNotifier(
            exchange="alerts",
            routing_key="airflow.{{ dag.dag_id }}.failed",
            message={"task": "{{ ti.task_id }}", "run": "{{ run_id }}"},
        )

    It works in the triggerer too, as the ``AsyncCallback`` of a deadline; nothing is blocked there meanwhile.

    A callback that waits holds the task's worker slot: for the connection's `connection_timeout` while the broker is
    away, for its `blocked_connection_timeout` at an alarm.

    :param exchange: the exchange; the default one, which knows queues by name, when empty.
    :param routing_key: the routing key, or the queue's name for the default exchange.
    :param message: bytes as they are, text as UTF-8, anything else as JSON.
    :param headers: of the message.
    :param properties: AMQP properties by name, such as ``correlation_id`` or ``priority``.
    :param cloudevent: send a CloudEvents 1.0 (JSON) event whose data the message is: the event's attributes, of which
        ``type`` is required; ``id``, ``source`` and ``time`` are made up where they are not given.
    :param mandatory: fail when no queue is bound for the message.
    :param rabbitmq_conn_id: the broker.
    """

    template_fields: Sequence[str] = (
        "exchange",
        "routing_key",
        "message",
        "headers",
        "properties",
        "cloudevent",
        "rabbitmq_conn_id",
    )

    def __init__(
        self,
        *,
        routing_key: str,
        message: Any,
        exchange: str = "",
        headers: Mapping[str, Any] | None = None,
        properties: Mapping[str, Any] | None = None,
        cloudevent: Mapping[str, Any] | None = None,
        mandatory: bool = True,
        rabbitmq_conn_id: str = RabbitMQHook.default_conn_name,
        context: Context | None = None,
    ) -> None:
        super().__init__(context)
        self.exchange = exchange
        self.routing_key = routing_key
        self.message = message
        self.headers = headers
        self.properties = properties
        self.cloudevent = cloudevent
        self.mandatory = mandatory
        self.rabbitmq_conn_id = rabbitmq_conn_id

    def notify(self, context: Context) -> None:
        """Publish, and wait until the broker has the message.

        :raises RabbitMQSparkError: it was not delivered; says why.
        """
        RabbitMQHook(self.rabbitmq_conn_id).publish(**self._message(context), mandatory=self.mandatory)

    async def async_notify(self, context: Context) -> None:
        """As :meth:`notify`, without blocking the event loop."""
        from airflow_rabbitmq_spark.amqp.connection import Connection
        from airflow_rabbitmq_spark.amqp.messages import check_size

        endpoint = await RabbitMQHook(self.rabbitmq_conn_id).aendpoint()
        message = check_size(RabbitMQHook.message(**self._message(context)), endpoint.max_message_bytes)
        connection = await Connection.open(endpoint)
        try:
            channel = await connection.channel()
            await channel.confirm()
            await channel.publish(
                message.exchange,
                message.routing_key,
                message.body,
                message.properties,
                mandatory=self.mandatory,
                timeout=endpoint.blocked_connection_timeout,
            )
        finally:
            await connection.close()

    def _message(self, context: Context) -> dict[str, Any]:
        """The message, as the hook's arguments; the templates are rendered already."""
        message_id = str(uuid.uuid4())
        properties = {"message_id": message_id, **(self.properties or {})}
        body = self.message
        if self.cloudevent is not None:
            from airflow_rabbitmq_spark import cloudevents

            attributes = {"id": message_id, "source": _source(context), **self.cloudevent}
            cloudevents.check_attributes(attributes)
            properties = {"content_type": cloudevents.CONTENT_TYPE, **properties, "message_id": str(attributes["id"])}
            body = cloudevents.encode(attributes, body)
        return {
            "routing_key": self.routing_key,
            "body": body,
            "exchange": self.exchange,
            "properties": properties,
            "headers": self.headers,
        }


def _source(context: Context) -> str:
    """The task or DAG run that it is about, as far as the callback is told."""
    from airflow_rabbitmq_spark.job.topology import word

    about = context.get("ti") or context.get("dag_run")
    names = [getattr(about, name, None) for name in ("dag_id", "task_id")]
    return "/".join(["/airflow", *(word(name) for name in names if isinstance(name, str))])
