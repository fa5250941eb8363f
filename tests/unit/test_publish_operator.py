"""RabbitMQPublishOperator's arguments: what is refused, and when. No broker."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from types import SimpleNamespace

import pytest

from airflow_rabbitmq_spark.exceptions import ConfigurationError
from airflow_rabbitmq_spark.hooks.rabbitmq import RabbitMQHook
from airflow_rabbitmq_spark.operators.rabbitmq import RabbitMQPublishOperator

CONTEXT = {"ti": SimpleNamespace(dag_id="d", run_id="r", task_id="t", map_index=-1, max_tries=0)}


def outgoing(context=CONTEXT, **arguments):
    operator = RabbitMQPublishOperator(task_id="t", **{"routing_key": "k", **arguments})
    return list(operator._outgoing(context, operator._bodies()))


@pytest.mark.parametrize("arguments", [{}, {"message": 1, "messages": [2]}])
def test_one_or_many(arguments):
    with pytest.raises(ConfigurationError, match="give `message` for one or `messages` for many"):
        RabbitMQPublishOperator(task_id="t", **arguments)


@pytest.mark.parametrize("messages", ["[1, 2]", b"x", {"a": 1}, 3])
def test_many_must_be_many(messages):
    with pytest.raises(ConfigurationError, match=r"`messages` is .*; give a list"):
        outgoing(messages=messages)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"properties": {"corelation_id": "x"}}, "no property `corelation_id`.*correlation_id"),
        ({"properties": {"priority": "high"}}, "`priority` is 'high'; it must be a whole number"),
        ({"properties": {"correlation_id": 7}}, "cannot hold these headers or properties"),
        ({"headers": {"x": object()}}, "cannot hold these headers or properties"),
        ({"cloudevent": {"subject": "x"}}, "has a `type`"),
        ({"cloudevent": {"type": "t", "Bad": 1}}, "'Bad'"),
        ({"message": {1, 2}}, "cannot be written as JSON"),
    ],
)
def test_what_is_refused_before_anything_is_sent(arguments, said):
    with pytest.raises(ConfigurationError, match=said):
        outgoing(**{"message": "x", **arguments})


@pytest.mark.parametrize("arguments", [{"properties": {"message_id": "1"}}, {"cloudevent": {"type": "t", "id": "1"}}])
def test_many_cannot_have_one_id(arguments):
    with pytest.raises(ConfigurationError, match="is set for all of `messages`"):
        outgoing(messages=["x"], **arguments)
    assert len(outgoing(message="x", **arguments)) == 1


def test_what_templates_make_text_of_is_a_number_again():
    (message,) = outgoing(message="x", properties={"priority": "3", "timestamp": "7", "expiration": 1500})
    assert (message.properties.priority, message.properties.timestamp) == (3, 7)
    assert message.properties.expiration == "1500"
    (message,) = outgoing(message="x", properties={"expiration": timedelta(seconds=2)})
    assert message.properties.expiration == "2000"


def test_ids_are_the_same_in_every_try_and_new_when_the_task_is_cleared():
    def ids(**changed):
        context = {"ti": SimpleNamespace(**{**vars(CONTEXT["ti"]), **changed})}
        return [message.properties.message_id for message in outgoing(context, messages=["a", "b"])]

    first = ids()
    assert len(set(first)) == 2
    assert ids(try_number=2) == first
    for changed in ({"max_tries": 1}, {"run_id": "other"}, {"map_index": 0}, {"task_id": "u"}, {"dag_id": "e"}):
        assert not set(ids(**changed)) & set(first)


def test_messages_with_properties_of_their_own():
    given = [
        RabbitMQHook.message("other", {"n": 1}, exchange="e", properties={"message_id": "mine"}),
        RabbitMQHook.message("other", {"n": 2}),
        {"n": 3},
    ]
    sent = outgoing(messages=given, headers={"h": 1})
    assert [message.routing_key for message in sent] == ["other", "other", "k"]
    assert sent[0].exchange == "e"
    assert sent[0].properties.message_id == "mine"
    assert sent[1].properties.message_id
    assert sent[2].properties.headers == {"h": 1}


MODULES = ("operators.rabbitmq", "notifications.rabbitmq", "links.spark_job", "listeners.plugin")


@pytest.mark.parametrize("module", MODULES)
def test_a_dag_file_does_not_pay_for_what_only_a_task_needs(module):
    code = (
        "import sys, airflow.sdk, airflow.sdk.bases.hook, airflow.sdk.plugins_manager; before = set(sys.modules); "
        f"import airflow_rabbitmq_spark.{module}; print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}
    assert "airflow_rabbitmq_spark" in loaded
    assert not loaded & {"pika", "ssl", "pyspark", "asyncio", "cryptography"}
