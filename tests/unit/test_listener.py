"""The listener: what is read, noted down and made of it; and that a call into it never waits. No broker."""

from __future__ import annotations

import configparser
import json
import os
import socket
import subprocess
import sys
import time
from datetime import datetime, timezone
from types import SimpleNamespace

import pytest
from airflow.sdk.configuration import conf

from airflow_rabbitmq_spark.amqp.endpoint import Endpoint
from airflow_rabbitmq_spark.amqp.outbox import Outbox
from airflow_rabbitmq_spark.exceptions import ConfigurationError
from airflow_rabbitmq_spark.listeners.listener import RabbitMQListener, to_message
from airflow_rabbitmq_spark.listeners.settings import Settings
from airflow_rabbitmq_spark.provider_info import get_provider_info

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)


def settings(**options):
    for name, value in options.items():
        os.environ[f"AIRFLOW__RABBITMQ_LISTENER__{name.upper()}"] = value
    try:
        return Settings.read(conf)
    finally:
        for name in options:
            del os.environ[f"AIRFLOW__RABBITMQ_LISTENER__{name.upper()}"]


def test_airflow_is_told_the_same_defaults():
    options = get_provider_info()["config"]["rabbitmq_listener"]["options"]
    told = configparser.ConfigParser()
    told.read_dict({"rabbitmq_listener": {name: option["default"] for name, option in options.items()}})
    assert settings(**{name: option["default"] for name, option in options.items()}) == Settings() == settings()
    assert set(options) == {"enabled", *Settings.__dataclass_fields__}


@pytest.mark.parametrize(
    ("allow", "deny", "wanted", "unwanted"),
    [
        ("*", "", ["a", "b.c"], []),
        ("sales_*, finance", "", ["sales_1", "finance"], ["finances", "Sales_1", "x"]),
        ("*", "*_secret,test_?", ["a"], ["a_secret", "test_1"]),
        ("a*", "a*", [], ["a"]),
        ("", "", [], ["a"]),
    ],
)
def test_globs(allow, deny, wanted, unwanted):
    read = settings(dag_allow=allow, dag_deny=deny)
    assert all(read.wants(dag_id) for dag_id in wanted)
    assert not any(read.wants(dag_id) for dag_id in unwanted)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("rabbitmq_conn_id", " "),
        ("exchange", ""),
        ("queue_size", "0"),
        ("flush_timeout", "-1"),
        ("flush_timeout", "inf"),
    ],
)
def test_wrong_options_are_named(option, value):
    with pytest.raises(ConfigurationError, match=rf"\[rabbitmq_listener\] {option} "):
        settings(**{option: value})


@pytest.fixture
def noted(monkeypatch):
    """A listener, and what it puts into its outbox."""
    notices: list = []
    monkeypatch.setattr(Outbox, "put", lambda _self, notice: notices.append(notice))
    return RabbitMQListener(Settings(dag_deny=("denied",))), notices


def event(notice):
    message = to_message(notice)
    body = json.loads(message.body)
    assert message.properties.message_id == body["id"]
    assert message.properties.content_type == "application/cloudevents+json"
    assert message.properties.delivery_mode == 2
    return message.routing_key, body


def dag_run(**changed):
    return SimpleNamespace(
        **{
            "dag_id": "my.dag",
            "run_id": "manual__1",
            "run_type": SimpleNamespace(value="manual"),
            "start_date": NOW,
            "logical_date": None,
            "conf": {"password": "canary"},
            **changed,
        }
    )


def task(**changed):
    return SimpleNamespace(
        **{
            "dag_id": "my.dag",
            "run_id": "manual__1",
            "task_id": "group.t",
            "map_index": -1,
            "try_number": 2,
            "state": "failed",
            "task": SimpleNamespace(task_type="BashOperator"),
            **changed,
        }
    )


def test_a_dag_run(noted):
    listener, notices = noted
    listener.on_dag_run_failed(dag_run(), "task_failure")
    key, body = event(notices[0])
    assert key == "dag_run.my%2Edag.failed"
    assert body["type"] == "airflow.dag_run.failed"
    assert (body["source"], body["subject"]) == ("/airflow/my%2Edag", "manual__1")
    assert body["data"] == {
        "dag_id": "my.dag",
        "run_id": "manual__1",
        "state": "failed",
        "run_type": "manual",
        "start_date": NOW.isoformat(),
        "message": "task_failure",
    }


def test_tasks(noted):
    listener, notices = noted
    listener.on_task_instance_running(task())
    listener.on_task_instance_success(task(task=None, operator="@task"))
    listener.on_task_instance_skipped(task())
    listener.on_task_instance_failed(task(), RuntimeError("x" * 5000))
    listener.on_task_instance_failed(task(state="up_for_retry"), "set by hand")
    events = [event(notice) for notice in notices]
    states = ["running", "success", "skipped", "failed", "up_for_retry"]
    assert [key for key, _ in events] == [f"task_instance.my%2Edag.group%2Et.{state}" for state in states]
    assert [body["data"]["operator"] for _, body in events] == ["BashOperator", "@task", *["BashOperator"] * 3]
    assert events[0][1]["data"]["try_number"] == 2
    assert events[3][1]["data"]["error"] == {"type": "RuntimeError", "message": "x" * 2000}
    assert events[4][1]["data"]["error"] == {"type": None, "message": "set by hand"}


def test_what_is_not_to_be_published(noted):
    listener, notices = noted
    listener.on_dag_run_running(dag_run(dag_id="denied"), "")
    listener.on_task_instance_running(task(dag_id="denied"))
    listener = RabbitMQListener(Settings(dag_run_events=False, task_instance_events=False))
    listener.on_dag_run_running(dag_run(), "")
    listener.on_task_instance_running(task())
    assert notices == []


def test_nothing_lazy_is_touched(noted):
    """A value that is not at hand would be a query in the scheduler's loop."""

    class Row(SimpleNamespace):
        def __getattr__(self, name):
            raise AssertionError(f"asked for {name}")

    listener, notices = noted
    listener.on_dag_run_success(Row(dag_id="d", run_id="r"), "")
    assert event(notices[0])[1]["data"] == {"dag_id": "d", "run_id": "r", "state": "success"}


def test_no_error_comes_out_of_it_and_it_is_said_once(noted, caplog):
    listener, notices = noted
    for _ in range(3):
        listener.on_dag_run_success(SimpleNamespace(dag_id="d"), "")
    assert notices == []
    assert len([record for record in caplog.records if "could not be noted" in record.message]) == 1


def test_off_it_costs_nothing():
    code = (
        "import sys, airflow.sdk.listener, airflow.sdk.plugins_manager; before = set(sys.modules); "
        "manager = airflow.sdk.listener.get_listener_manager(); "
        "print(manager.has_listeners, *sorted(set(sys.modules) - before))"
    )
    environment = {**os.environ, "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    run = [sys.executable, "-c", code]
    off = (
        subprocess.run(run, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()[-1].split()
    )
    assert off[0] == "False"
    assert "airflow_rabbitmq_spark.listeners.plugin" in off
    assert not {"pika", "airflow_rabbitmq_spark.listeners.listener", "airflow_rabbitmq_spark.amqp"} & set(off)
    environment["AIRFLOW__RABBITMQ_LISTENER__ENABLED"] = "True"
    on = (
        subprocess.run(run, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()[-1].split()
    )
    assert on[0] == "True"
    assert "pika" not in on


def test_a_call_does_not_wait_for_a_broker_that_says_nothing(capsys):
    """The listener of a process whose broker accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = Endpoint.from_uri(f"amqp://u:p@127.0.0.1:{silent.getsockname()[1]}/")
        listener = RabbitMQListener(Settings(queue_size=100, flush_timeout=0.2))
        listener.outbox._find = lambda: endpoint
        took = []
        for _ in range(500):
            began = time.perf_counter()
            listener.on_dag_run_running(dag_run(), "x")
            took.append(time.perf_counter() - began)
        listener.before_stopping()
        assert not listener.outbox.flush()
        # What cannot be delivered is bounded, and counted.
        assert len(listener.outbox._waiting) + listener.outbox._in_hand <= 200
        assert listener.outbox.dropped >= 300
    took.sort()
    with capsys.disabled():
        print(
            f"\n500 listener calls, the broker silent: median {took[250] * 1e6:.0f} us, "
            f"99 % {took[495] * 1e6:.0f} us, longest {took[-1] * 1e3:.2f} ms"
        )
