"""RabbitMQPublishOperator on a real broker: what arrives, and what fails with which reason."""

from __future__ import annotations

import json
import uuid
from types import SimpleNamespace

import pytest
from airflow.sdk.execution_time.context import set_current_context

from airflow_rabbitmq_spark import __version__
from airflow_rabbitmq_spark.exceptions import (
    BrokerBlocked,
    BrokerUnreachable,
    ConfigurationError,
    NotFound,
    Rejected,
    Unconfirmed,
    Unroutable,
)
from airflow_rabbitmq_spark.hooks.rabbitmq import RabbitMQHook
from airflow_rabbitmq_spark.operators import rabbitmq as module
from airflow_rabbitmq_spark.operators.rabbitmq import RabbitMQPublishOperator
from stack.processes import free_port
from stack.proxy import Proxy
from tests.broker.drivers import alarm

TI = SimpleNamespace(dag_id="d", run_id="r", task_id="t", map_index=-1, max_tries=0)


@pytest.fixture
def hook(broker, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_RABBITMQ_DEFAULT", broker.connection())
    with RabbitMQHook() as opened:
        yield opened


@pytest.fixture
def queue(hook):
    name = f"test-{uuid.uuid4().hex}"
    hook.declare_queue(name)
    yield name
    hook.delete_queue(name)


def run(**arguments):
    """As a task does it: render, then execute."""
    operator = RabbitMQPublishOperator(task_id="t", **arguments)
    context = {"ti": TI, "run_id": "r", "rows": 7}
    operator.render_template_fields(context)
    return operator.execute(context)


def test_everything_is_templated(hook, queue):
    assert (
        run(
            routing_key=queue[:-1] + "{{ '" + queue[-1] + "' }}",
            exchange="{{ '' }}",
            message={"rows": ["{{ rows }}"]},
            headers={"run": "{{ run_id }}"},
            properties={"correlation_id": "{{ run_id }}-{{ rows }}", "priority": "{{ rows }}", "type": "t"},
            rabbitmq_conn_id="rabbitmq_{{ 'default' }}",
        )
        == 1
    )
    message = hook.get(queue)
    assert json.loads(message.body) == {"rows": ["7"]}
    properties = message.properties
    assert properties.headers == {"run": "r"}
    assert (properties.correlation_id, properties.priority, properties.type) == ("r-7", 7, "t")
    assert (properties.content_type, properties.delivery_mode) == ("application/json", 2)
    assert uuid.UUID(properties.message_id)


def test_text_and_bytes(hook, queue):
    assert run(routing_key=queue, messages=["run {{ run_id }}", b"\0{{ raw }}", {"a": None}, None]) == 4
    bodies = [hook.get(queue).body for _ in range(4)]
    assert bodies == [b"run r", b"\0{{ raw }}", b'{"a": null}', b"null"]


def test_cloudevents(hook, queue):
    event = {"type": "com.example.{{ run_id }}", "subject": "{{ rows }}"}
    assert run(routing_key=queue, messages=[{"n": 1}, b"\xff"], cloudevent=event) == 2
    first, second = hook.get(queue), hook.get(queue)
    assert first.properties.content_type == "application/cloudevents+json"
    one, two = json.loads(first.body), json.loads(second.body)
    assert (one["specversion"], one["type"], one["subject"]) == ("1.0", "com.example.r", "7")
    assert one["source"].endswith("/t")
    assert one["data"] == {"n": 1}
    assert two["data_base64"] == "/w=="
    assert first.properties.message_id == one["id"] != two["id"]


def test_a_large_batch_shows_progress(hook, queue, monkeypatch, capsys):
    monkeypatch.setattr(module, "PROGRESS_INTERVAL", 0.0)

    def messages(context, jinja_env):
        assert jinja_env is not None
        return ({"n": n, "run": context["run_id"]} for n in range(5000))

    assert run(routing_key=queue, messages=messages) == 5000
    assert hook.inspect_queue(queue).messages == 5000
    shown = capsys.readouterr().out
    assert "messages confirmed, " in shown
    assert "5000 messages published and confirmed in" in shown
    hook.purge_queue(queue)
    assert run(routing_key=queue, messages=[{"n": n} for n in range(3000)]) == 3000
    assert " of 3000 messages confirmed" in capsys.readouterr().out


def test_large_messages_are_held_back_by_their_bytes(hook, queue):
    seen: list[int] = []

    def messages(context, jinja_env):
        for n in range(10):
            seen.append(hook.inspect_queue(queue).messages)
            yield bytes([n]) * (8 * 2**20)

    assert run(routing_key=queue, messages=messages) == 10
    # Those that came first were taken by the broker while the last were not yet made.
    assert seen[-1] >= 2


def test_no_queue_for_a_message(queue):
    with pytest.raises(Unroutable, match=r"No queue is bound to exchange.*'no-such-queue'.*1 messages before it"):
        run(routing_key="x", messages=[RabbitMQHook.message(queue, "a"), RabbitMQHook.message("no-such-queue", "b")])
    assert run(routing_key="no-such-queue", message="x", mandatory=False) == 1
    with pytest.raises(NotFound, match="no-such-exchange"):
        run(routing_key="k", exchange="no-such-exchange", message="x")


def test_a_refused_message(hook):
    name = f"full-{uuid.uuid4().hex}"
    hook.declare_queue(name, arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
    try:
        with pytest.raises(Rejected, match="refused the message: a queue is full"):
            run(routing_key=name, messages=["1", "2", "3"])
    finally:
        hook.delete_queue(name)


def test_an_unconfirmed_message(broker, queue, monkeypatch):
    with Proxy(broker.port) as proxy:
        monkeypatch.setenv(
            "AIRFLOW_CONN_SILENT",
            broker.connection().replace(f":{broker.port}/", f":{proxy.port}/") + "&blocked_connection_timeout=2",
        )

        def messages(context, jinja_env):
            yield "before"
            proxy.black_hole()
            yield "after"

        with pytest.raises(Unconfirmed, match=r"has not confirmed the message in 2 s. It may or may not"):
            run(routing_key=queue, messages=messages, rabbitmq_conn_id="silent")


def test_a_memory_alarm_is_said_and_does_not_hang(hook, broker, queue, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_IMPATIENT", f"{broker.connection()}&blocked_connection_timeout=2")
    arguments = {"routing_key": queue, "rabbitmq_conn_id": "impatient"}
    with alarm(broker):
        for messages in (["x"], ["x" * 1000] * 20_000, [b"x" * 2**20] * 100):
            with pytest.raises(BrokerBlocked, match="alarm"):
                run(messages=messages, **arguments)
    assert run(message="x", **arguments) == 1


def test_no_broker(monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_AWAY", f"amqp://u:p@127.0.0.1:{free_port()}/?attempts=1")
    with pytest.raises(BrokerUnreachable, match=r"127\.0\.0\.1"):
        run(routing_key="k", message="x", rabbitmq_conn_id="away")
    with pytest.raises(ConfigurationError, match="no connection 'nowhere'"):
        run(routing_key="k", message="x", rabbitmq_conn_id="nowhere")


def test_the_broker_shows_whose_connection_it_is(broker, queue):
    shown: list[list[str]] = []

    def messages(context, jinja_env):
        yield "x"
        shown.append(broker.connection_names())

    with set_current_context({"ti": TI}):
        run(routing_key=queue, messages=messages)
    assert f"airflow-rabbitmq-spark {__version__} d.t r" in shown[0]
