"""The hook's everyday operations on a real broker."""

from __future__ import annotations

import asyncio
import json
import shlex
import time
import uuid
from pathlib import Path

import pika
import pytest

from airflow_rabbitmq_spark.exceptions import (
    AccessRefused,
    BrokerBlocked,
    ConfigurationError,
    ConnectionLost,
    NotFound,
    TopologyConflict,
    Unroutable,
)
from airflow_rabbitmq_spark.hooks.rabbitmq import RabbitMQHook
from tests.broker.drivers import alarm, eventually


@pytest.fixture
def hook(broker, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_HOOK", broker.connection())
    with RabbitMQHook("hook") as opened:
        yield opened


@pytest.fixture
def queue(hook):
    name = f"test-{uuid.uuid4().hex}"
    hook.declare_queue(name)
    yield name
    hook.delete_queue(name)


def test_get_conn_is_pikas(hook):
    connection = hook.get_conn()
    assert isinstance(connection, pika.BlockingConnection)
    connection.channel().close()
    connection.close()


@pytest.mark.parametrize(
    ("body", "received", "content_type"),
    [
        (b"\0\xff", b"\0\xff", "application/octet-stream"),
        ("tëxt", "tëxt".encode(), "text/plain; charset=utf-8"),
        ({"a": [1, None, "é"]}, '{"a": [1, null, "é"]}'.encode(), "application/json"),
        (3, b"3", "application/json"),
        (b"", b"", "application/octet-stream"),
        (bytearray(b"x"), b"x", "application/octet-stream"),
    ],
)
def test_publish_and_get(hook, queue, body, received, content_type):
    hook.publish(queue, body)
    message = hook.get(queue)
    assert message is not None
    assert message.body == received
    assert message.properties.content_type == content_type
    assert message.properties.delivery_mode == 2
    assert hook.get(queue) is None


def test_properties_and_headers(hook, queue):
    hook.publish(
        queue,
        "x",
        properties={"correlation_id": "c", "priority": 3, "content_type": "text/x", "headers": {"a": 1}},
        headers={"b": [1, "two"]},
    )
    properties = hook.get(queue).properties
    assert (properties.correlation_id, properties.priority, properties.content_type) == ("c", 3, "text/x")
    assert properties.headers == {"a": 1, "b": [1, "two"]}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"properties": {"corelation_id": "x"}}, ("`corelation_id`", "`correlation_id`")),
        ({"body": {1, 2}}, ("set", "JSON")),
        ({"body": float("nan")}, ("JSON",)),
        ({"body": b"x" * (16 * 2**20 + 1)}, ("16777217 bytes", "`max_message_bytes`")),
    ],
)
def test_messages_refused_before_they_are_sent(hook, queue, arguments, words):
    with pytest.raises(ConfigurationError) as caught:
        hook.publish(queue, **{"body": "x", **arguments})
    for word in words:
        assert word in str(caught.value)
    assert hook.inspect_queue(queue).messages == 0


def test_no_queue_for_a_message(hook):
    with pytest.raises(Unroutable, match="no-such-queue"):
        hook.publish("no-such-queue", "x")
    hook.publish("no-such-queue", "x", mandatory=False)


def test_no_exchange_for_a_message(hook):
    with pytest.raises(NotFound, match="no-such-exchange"):
        hook.publish("k", "x", exchange="no-such-exchange")


def test_publish_many(hook, queue, capsys):
    told: list[int] = []
    messages = (hook.message(queue, {"n": n}) for n in range(5000))
    assert hook.publish_many(messages, on_progress=told.append) == 5000
    assert told[-1] == 5000
    assert told == sorted(told)
    assert hook.inspect_queue(queue).messages == 5000
    assert hook.publish_many([]) == 0
    assert hook.publish_many([hook.message(queue, b"x")]) == 1
    assert "1 messages published and confirmed" in capsys.readouterr().out
    assert hook.purge_queue(queue) == 5001


def test_publish_many_stops_at_the_first_failure(hook, queue):
    messages = [hook.message(queue, b"x"), hook.message("no-such-queue", b"y"), hook.message(queue, b"z")]
    with pytest.raises(Unroutable, match="confirmed"):
        hook.publish_many(messages)
    too_large = [hook.message(queue, b"x"), hook.message(queue, b"x" * (16 * 2**20 + 1))]
    with pytest.raises(ConfigurationError, match="`max_message_bytes`"):
        hook.publish_many(too_large)


def test_an_alarm_is_told_after_the_timeout(hook, queue, broker, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_IMPATIENT", f"{broker.connection()}&blocked_connection_timeout=1")
    with alarm(broker), pytest.raises(BrokerBlocked, match=r"alarm.* in 1 s\."):
        RabbitMQHook("impatient").publish(queue, "x")


def test_queues_and_exchanges(hook, queue):
    exchange = f"{queue}.exchange"
    hook.declare_exchange(exchange, "direct")
    hook.declare_exchange(exchange, "direct")  # once more changes nothing
    assert hook.exchange_exists(exchange)
    hook.bind_queue(queue, exchange, "key")
    hook.publish("key", "x", exchange=exchange)
    state = hook.inspect_queue(queue)
    assert (state.name, state.messages, state.consumers) == (queue, 1, 0)
    hook.unbind_queue(queue, exchange, "key")
    with pytest.raises(Unroutable):
        hook.publish("key", "x", exchange=exchange)
    assert hook.purge_queue(queue) == 1
    hook.delete_exchange(exchange)
    hook.delete_exchange(exchange)
    assert not hook.exchange_exists(exchange)
    assert hook.inspect_queue("no-such-queue") is None
    assert hook.delete_queue("no-such-queue") == 0


def test_declaring_with_options(hook):
    name = f"test-{uuid.uuid4().hex}"
    made = hook.declare_queue(name, arguments={"x-max-length": 1, "x-queue-type": "classic"}, auto_delete=False)
    assert made.name == name
    with pytest.raises(TopologyConflict, match="x-max-length"):
        hook.declare_queue(name, arguments={"x-max-length": 2, "x-queue-type": "classic"})
    hook.publish(name, "x")
    with pytest.raises(TopologyConflict):
        hook.delete_queue(name, if_empty=True)
    assert hook.delete_queue(name) == 1


def test_what_is_not_there(hook):
    for call in (hook.get, hook.purge_queue):
        with pytest.raises(NotFound, match="no-such-queue"):
            call("no-such-queue")
    with pytest.raises(NotFound, match="no-such-exchange"):
        hook.bind_queue("no-such-queue", "no-such-exchange")
    with pytest.raises(NotFound, match="no-such-queue"):
        hook.consume("no-such-queue", print)


def test_what_is_not_allowed(broker, monkeypatch):
    uri = broker.uri(user="nobody")
    monkeypatch.setenv("AIRFLOW_CONN_NOBODY", f"{uri}?ca_certificate={broker.ca_file}")
    nobody = RabbitMQHook("nobody")
    with pytest.raises(AccessRefused, match="nobody"):
        nobody.declare_queue("x")
    with pytest.raises(AccessRefused, match="nobody"):
        nobody.publish("x", "y", exchange="amq.topic")


def test_consume_acknowledges_what_was_handled(hook, queue):
    hook.publish_many(hook.message(queue, {"n": n}) for n in range(200))
    seen: list[int] = []
    assert hook.consume(queue, lambda message: seen.append(json.loads(message.body)["n"]), max_messages=150) == 150
    assert seen == list(range(150))
    assert hook.consume(queue, lambda message: seen.append(json.loads(message.body)["n"]), idle_timeout=0.5) == 50
    assert seen == list(range(200))
    assert hook.inspect_queue(queue).messages == 0


def test_what_a_handler_failed_on_is_in_the_queue_again(hook, queue):
    hook.publish_many(hook.message(queue, {"n": n}) for n in range(10))

    def handle(message) -> None:
        if json.loads(message.body)["n"] == 3:
            raise RuntimeError("no threes")

    with pytest.raises(RuntimeError, match="no threes"):
        hook.consume(queue, handle, idle_timeout=1)
    for _ in range(50):
        if hook.inspect_queue(queue).messages == 7:
            break
        time.sleep(0.1)
    message = hook.get(queue)
    assert json.loads(message.body)["n"] == 3
    assert message.redelivered


def test_a_handler_may_be_slower_than_the_heartbeats(broker, queue, monkeypatch, hook):
    monkeypatch.setenv("AIRFLOW_CONN_FAST", f"{broker.connection()}&heartbeat=1")
    hook.publish_many(hook.message(queue, b"x") for _ in range(2))
    assert RabbitMQHook("fast").consume(queue, lambda _: time.sleep(3), max_messages=2) == 2
    assert hook.inspect_queue(queue).messages == 0


def test_a_queue_that_is_deleted_while_it_is_consumed(hook, queue):
    hook.publish(queue, "x")

    def handle(_message) -> None:
        hook.delete_queue(queue)

    with pytest.raises(NotFound, match="deleted"):
        hook.consume(queue, handle, idle_timeout=5)


def test_a_connection_that_is_closed_while_it_consumes(hook, queue, broker):
    hook.publish(queue, "x")

    def handle(_message) -> None:
        broker.close_connections("the test says so")
        time.sleep(0.5)

    with pytest.raises(ConnectionLost, match="the test says so"):
        hook.consume(queue, handle, idle_timeout=5)
    assert hook.inspect_queue(queue).messages == 1  # and the hook has connected again


def test_as_a_context_manager_it_keeps_one_connection(broker, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_KEEP", broker.connection() + "&connection_name=kept")

    def connections() -> int:
        return broker.connection_names().count("kept")

    with RabbitMQHook("keep") as kept:
        for _ in range(3):
            kept.inspect_queue("x")
        assert connections() == 1
    # The broker shows one that is closed for a while.
    eventually(lambda: connections() == 0)
    alone = RabbitMQHook("keep")
    alone.inspect_queue("x")
    eventually(lambda: connections() == 0)


def test_the_async_side(hook, queue):
    hook.publish(queue, {"n": 1})

    async def first() -> bytes:
        async with hook.subscribe(queue) as messages:
            message = await messages.next()
            messages.ack(message)
            return message.body

    assert json.loads(asyncio.run(first())) == {"n": 1}


def test_the_example_of_the_documentation(broker, monkeypatch, capsys):
    page = (Path(__file__).parents[2] / "docs" / "connection.md").read_text()
    example = page.partition("```python\n")[2].partition("```")[0]
    monkeypatch.setenv("AIRFLOW_CONN_RABBITMQ_DEFAULT", broker.connection())
    exec(compile(example, "docs/connection.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "QueueState(name='orders', messages=101, consumers=0)" in printed
    assert """b'{"id": 7}'""" in printed
    assert RabbitMQHook().inspect_queue("orders") is None


def test_the_permissions_of_the_documentation_are_enough(broker, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "connection.md").read_text()
    line = next(
        line.strip() for line in page.splitlines() if line.strip().startswith("rabbitmqctl set_permissions -p VHOST")
    )
    command = [{"VHOST": "/", "USER": "modest"}.get(word, word) for word in shlex.split(line)[1:]]
    broker.ctl("add_user", "modest", "secret")
    try:
        broker.ctl(*command)
        monkeypatch.setenv(
            "AIRFLOW_CONN_MODEST", f"{broker.uri(user='modest', password='secret')}?ca_certificate={broker.ca_file}"
        )
        assert "'modest' may declare what jobs need" in RabbitMQHook("modest").test_connection()[1]
        with pytest.raises(AccessRefused):
            RabbitMQHook("modest").declare_queue("something-else")
    finally:
        broker.ctl("delete_user", "modest")
