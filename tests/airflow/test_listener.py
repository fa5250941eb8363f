"""The listener in a real Airflow: what is told and what is not, and that a broker that is away holds nothing up."""

from __future__ import annotations

import json
import time
from datetime import datetime

import pytest

EXCHANGE = QUEUE = "tests.listener"


@pytest.fixture(scope="module")
def connection(airflow_stack, broker, listener_proxy):
    """The connection in Airflow's database, where the scheduler finds it otherwise than a task does."""
    description = {
        "connection_id": "listener_broker",
        "conn_type": "rabbitmq",
        "host": "127.0.0.1",
        "port": listener_proxy.port,
        "login": broker.user,
        "password": broker.password,
        "extra": json.dumps({"tls": True, "ca_certificate": broker.ca_pem, "connection_timeout": 3, "heartbeat": 2}),
    }
    airflow_stack.api("POST", "connections", json=description)
    yield
    airflow_stack.api("DELETE", "connections/listener_broker")


@pytest.fixture
def hook(connection, broker, monkeypatch):
    from airflow_rabbitmq_spark.hooks.rabbitmq import RabbitMQHook

    monkeypatch.setenv("AIRFLOW_CONN_RABBITMQ_DEFAULT", broker.connection())
    with RabbitMQHook() as opened:
        opened.declare_exchange(EXCHANGE)
        opened.declare_queue(QUEUE)
        opened.bind_queue(QUEUE, EXCHANGE, "#")
        yield opened
        opened.delete_queue(QUEUE)
        opened.delete_exchange(EXCHANGE)


def events_until(hook, keys):
    """Events by routing key, until all of ``keys`` have come; one of each run and state."""
    found = {}
    deadline = time.monotonic() + 120
    while not keys <= set(found):
        assert time.monotonic() < deadline, f"missing: {keys - set(found)}; there are {set(found)}"
        message = hook.get(QUEUE)
        if message is None:
            time.sleep(0.2)
            continue
        assert message.properties.content_type == "application/cloudevents+json"
        event = json.loads(message.body)
        assert event["id"] == message.properties.message_id
        assert datetime.fromisoformat(event["time"]).tzinfo is not None
        found[message.routing_key] = event
    return found


def keys_of(dag_id, state="success"):
    return {f"dag_run.{dag_id}.running", f"dag_run.{dag_id}.{state}"}


TOLD = keys_of("listener_told") | {
    f"task_instance.listener_told.{what}"
    for what in ("first.running", "first.success", "second.running", "second.skipped")
}


def test_what_is_allowed_is_told_and_nothing_else(airflow_stack, hook):
    runs = {
        dag: airflow_stack.trigger(dag) for dag in ("listener_denied", "unheard", "listener_told", "listener_fails")
    }
    states = {dag: airflow_stack.wait_for_run(dag, run) for dag, run in runs.items()}
    assert states == {**dict.fromkeys(runs, "success"), "listener_fails": "failed"}
    failing = keys_of("listener_fails", "failed") | {
        "task_instance.listener_fails.wrong.running",
        "task_instance.listener_fails.wrong.failed",
    }
    events = events_until(hook, TOLD | failing)
    assert set(events) == TOLD | failing

    end = events["dag_run.listener_told.success"]
    assert (end["type"], end["source"]) == ("airflow.dag_run.success", "/airflow/listener_told")
    assert end["subject"] == end["data"]["run_id"] == runs["listener_told"]
    assert end["data"]["run_type"] == "manual"
    assert datetime.fromisoformat(end["data"]["start_date"]) <= datetime.fromisoformat(end["data"]["end_date"])
    task = events["task_instance.listener_told.first.success"]
    assert task["data"]["task_id"] == "first"
    assert task["data"]["operator"] == "_PythonDecoratedOperator"
    assert (task["data"]["try_number"], task["data"]["map_index"]) == (1, -1)
    failure = events["task_instance.listener_fails.wrong.failed"]
    assert failure["data"]["error"] == {"type": "ValueError", "message": "no such luck"}

    # A state set by hand is told by the API server.
    path = f"dags/listener_told/dagRuns/{runs['listener_told']}"
    airflow_stack.api("PATCH", path, json={"state": "failed"})
    by_hand = events_until(hook, {"dag_run.listener_told.failed"})["dag_run.listener_told.failed"]
    assert "manually" in by_hand["data"]["message"]


def test_a_broker_that_is_away_holds_nothing_up(airflow_stack, hook, listener_proxy, listener_timings, capsys):
    def run() -> float:
        began = time.monotonic()
        assert airflow_stack.wait_for_run("listener_told", airflow_stack.trigger("listener_told")) == "success"
        return time.monotonic() - began

    events_seen = len(listener_timings.read_text().splitlines())
    took = {"there": run()}
    events_until(hook, TOLD)
    for fault in ("refuse", "black_hole"):
        getattr(listener_proxy, fault)()
        took[fault] = run()
    assert hook.get(QUEUE) is None
    health = airflow_stack.api("GET", "monitor/health")
    assert health["scheduler"]["status"] == "healthy"
    listener_proxy.restore()
    # What happened while it was away and is still kept comes, and what happens now.
    took["there again"] = run()
    events_until(hook, TOLD)
    log = (airflow_stack.directory / "scheduler.log").read_text()
    assert "are not delivered" in log
    assert "are delivered again" in log

    calls = [json.loads(line) for line in listener_timings.read_text().splitlines()[events_seen:]]
    with capsys.disabled():
        print("\n" + ", ".join(f"broker {state}: run took {seconds:.1f} s" for state, seconds in took.items()))
        for about in ("DagRun", "RuntimeTaskInstance"):
            seconds = sorted(call["seconds"] for call in calls if call["about"] == about)
            assert seconds
            print(
                f"{len(seconds)} listener calls about a {about}: median {seconds[len(seconds) // 2] * 1e3:.2f} ms, "
                f"longest {seconds[-1] * 1e3:.2f} ms"
            )
