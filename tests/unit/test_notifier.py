"""RabbitMQNotifier's messages. No broker."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import pytest

from airflow_rabbitmq_spark.exceptions import BrokerUnreachable, ConfigurationError
from airflow_rabbitmq_spark.hooks.rabbitmq import RabbitMQHook
from airflow_rabbitmq_spark.notifications.rabbitmq import RabbitMQNotifier
from stack.processes import free_port

CONTEXT = {"ti": SimpleNamespace(dag_id="my dag", task_id="t")}


def outgoing(context=CONTEXT, **arguments):
    notifier = RabbitMQNotifier(**{"routing_key": "k", "message": {"a": 1}, **arguments})
    return RabbitMQHook.message(**notifier._message(context))


def test_a_message():
    message = outgoing(headers={"h": 1}, properties={"priority": "2", "correlation_id": "c"}, exchange="e")
    assert (message.exchange, message.routing_key, message.body) == ("e", "k", b'{"a": 1}')
    properties = message.properties
    assert (properties.priority, properties.correlation_id, properties.headers) == (2, "c", {"h": 1})
    assert properties.content_type == "application/json"
    assert properties.message_id != outgoing().properties.message_id


@pytest.mark.parametrize(
    ("context", "source"),
    [
        (CONTEXT, "/airflow/my%20dag/t"),
        ({"dag_run": SimpleNamespace(dag_id="d")}, "/airflow/d"),
        ({"dag_run": {"dag_id": "d"}}, "/airflow"),
        ({}, "/airflow"),
    ],
)
def test_a_cloudevent(context, source):
    message = outgoing(context, cloudevent={"type": "t"})
    event = json.loads(message.body)
    assert message.properties.content_type == "application/cloudevents+json"
    assert event["source"] == source
    assert event["id"] == message.properties.message_id
    assert event["data"] == {"a": 1}


@pytest.mark.parametrize("cloudevent", [{}, {"type": "t", "Bad": 1}])
def test_no_cloudevent(cloudevent):
    with pytest.raises(ConfigurationError, match="CloudEvent"):
        outgoing(cloudevent=cloudevent)


def test_a_broker_that_is_away_is_an_error_with_the_reason(monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_AWAY", f"amqp://u:p@127.0.0.1:{free_port()}/")
    notifier = RabbitMQNotifier(routing_key="k", message="x", rabbitmq_conn_id="a{{ 'way' }}")
    with pytest.raises(BrokerUnreachable, match=r"127\.0\.0\.1"):
        notifier({"ti": CONTEXT["ti"]})

    async def wait():
        await RabbitMQNotifier(routing_key="k", message="x", rabbitmq_conn_id="away", context={})

    with pytest.raises(BrokerUnreachable, match=r"127\.0\.0\.1"):
        asyncio.run(wait())
