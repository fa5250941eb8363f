"""The sensor in a real Airflow: with its triggerer, its database, and a person who changes his mind."""

from __future__ import annotations

import time
from datetime import datetime, timezone

import pytest

DAG = "sensor_story"
NAMES = ("any", "mine", "marked", "late")


@pytest.fixture
def hook(broker, monkeypatch):
    from airflow_rabbitmq_spark.hooks.rabbitmq import RabbitMQHook

    monkeypatch.setenv("AIRFLOW_CONN_RABBITMQ_DEFAULT", broker.connection())
    with RabbitMQHook() as opened:
        for name in NAMES:
            opened.declare_queue(f"tests.sensor.{name}")
        yield opened
        for name in NAMES:
            opened.delete_queue(f"tests.sensor.{name}")


def left(broker):
    """Messages of each queue, those that somebody holds included."""
    sizes = broker.queue_sizes()
    return {name: sizes[f"tests.sensor.{name}"] for name in NAMES}


def test_a_message_is_taken_once_and_goes_back_when_nobody_has_it(airflow_stack, broker, hook):
    run = airflow_stack.trigger(DAG)
    # The trigger has this one, and holds it back because it is early; meanwhile a person ends the task.
    airflow_stack.wait_for_task(DAG, run, "marked", "deferred")
    hook.publish("tests.sensor.marked", "x")
    deadline = time.monotonic() + 60
    while hook.inspect_queue("tests.sensor.marked").messages:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    task = f"dags/{DAG}/dagRuns/{run}/taskInstances/marked"
    airflow_stack.api("PATCH", task, json={"new_state": "failed"})

    for name in ("any", "mine"):
        airflow_stack.wait_for_task(DAG, run, name, "deferred")
    # One that Airflow's own msgpack, and JSON, could not hold as it comes.
    headers = {"when": datetime(2026, 1, 1, tzinfo=timezone.utc), "bytes": b"\xff", "big": 2**40, "deep": [{"a": None}]}
    hook.publish("tests.sensor.any", b"\xff\0", headers=headers)
    hook.publish("tests.sensor.mine", {"for": "another"})
    hook.publish("tests.sensor.mine", {"for": DAG})

    assert airflow_stack.wait_for_run(DAG, run) == "failed"
    states = {name: airflow_stack.task(DAG, run, name)["state"] for name in (*NAMES, "missing")}
    assert states == {"any": "success", "mine": "success", "marked": "failed", "late": "failed", "missing": "failed"}
    message = airflow_stack.xcom(DAG, run, "any")
    assert (message["body"], message["body_encoding"]) == ("/wA=", "base64")
    assert message["headers"] == {
        "when": "2026-01-01T00:00:00+00:00",
        "bytes": "/w==",
        "big": 2**40,
        "deep": [{"a": None}],
    }
    assert airflow_stack.xcom(DAG, run, "mine")["body"] == {"for": DAG}
    log = airflow_stack.log(DAG, run, "late")
    assert "late: no message has come to queue 'tests.sensor.late' within timeout=1 s." in log
    assert "NotFound" in airflow_stack.log(DAG, run, "missing")

    # What was taken is acknowledged once Airflow has the tasks' success; what nobody has is back.
    deadline = time.monotonic() + 60
    while left(broker) != (wanted := {"any": 0, "mine": 1, "marked": 1, "late": 0}):
        assert time.monotonic() < deadline, (left(broker), wanted)
        time.sleep(0.5)
    assert hook.get("tests.sensor.marked").body == b"x"


def test_the_example(airflow_stack, hook):
    run = airflow_stack.trigger("await_orders")
    assert airflow_stack.wait_for_run("await_orders", run) == "success"
    assert airflow_stack.xcom("await_orders", run, "ship") == 7
    hook.delete_queue("example.payments.await_orders")
    hook.delete_exchange("example.payments")
