"""The operator and the notifier in a real Airflow: one DAG publishes in every way, and its queue is read."""

from __future__ import annotations

import json

import pytest

DAG = "publish_story"
QUEUE = "tests.publish"


@pytest.fixture
def queue(broker, monkeypatch):
    from airflow_rabbitmq_spark.hooks.rabbitmq import RabbitMQHook

    monkeypatch.setenv("AIRFLOW_CONN_RABBITMQ_DEFAULT", broker.connection())
    with RabbitMQHook() as hook:
        hook.declare_queue(QUEUE)
        yield hook
        hook.delete_queue(QUEUE)


def test_what_a_dag_publishes_arrives_and_what_cannot_fails_with_the_reason(airflow_stack, queue):
    run = airflow_stack.trigger(DAG)
    messages = []
    queue.consume(QUEUE, messages.append, max_messages=12, idle_timeout=180)
    assert airflow_stack.wait_for_run(DAG, run) == "failed"  # because of the one that nobody listens to
    assert queue.get(QUEUE) is None

    states = {name: airflow_stack.task(DAG, run, name)["state"] for name in ("many", "one", "function", "untouched")}
    assert set(states.values()) == {"success"}
    assert airflow_stack.xcom(DAG, run, "many") == 2
    assert airflow_stack.xcom(DAG, run, "function") == 3
    assert airflow_stack.task(DAG, run, "unroutable")["state"] == "failed"
    log = airflow_stack.log(DAG, run, "unroutable")
    assert "Unroutable: No queue is bound to exchange '(default)' for routing key 'tests.nobody-listens'" in log

    # What the callbacks did, and what they could not.
    assert "Failed to run task callback" in (log := airflow_stack.log(DAG, run, "untouched"))
    assert "BrokerUnreachable" in log
    bodies = [message.body.decode() for message in messages]
    assert "the next callback" in bodies
    assert "succeeded: many" in bodies
    failed = next(body for body in bodies if body.startswith("failed: "))
    assert "No queue is bound" in failed

    # The messages themselves.
    by_type = {
        event["type"]: (event, message.properties)
        for message in messages
        if message.properties.content_type == "application/cloudevents+json"
        for event in [json.loads(message.body)]
    }
    event, properties = by_type["tests.one"]
    assert event["data"] == {"run": run, "made": "2"}
    assert event["source"] == "/airflow/publish_story/one"
    assert properties.headers == {"dag": DAG}
    assert (properties.correlation_id, properties.priority) == (run, 1)
    late, _ = by_type["tests.late"]
    assert late["data"] == f"late: {DAG}"
    rest = [body for body in bodies if body in {"made 2", "mapped 0", "mapped 1", '{"made": 1}'} or "function" in body]
    assert sorted(rest) == sorted(
        ['{"made": 1}', "made 2", "mapped 0", "mapped 1"] + [json.dumps({"function": n, "run": run}) for n in range(3)]
    )
    assert len({message.properties.message_id for message in messages}) == len(messages) == 12


def test_the_example_publishes_and_handles_its_orders(airflow_stack):
    run = airflow_stack.trigger("publish_orders")
    assert airflow_stack.wait_for_run("publish_orders", run) == "success"
    assert airflow_stack.xcom("publish_orders", run, "announce") == 3
    assert airflow_stack.xcom("publish_orders", run, "handle") >= 3
