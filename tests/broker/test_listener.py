"""The listener's outbox on a real broker: delivered once it can be, bounded and counted while it cannot."""

from __future__ import annotations

import logging
import os
import time
import uuid
from dataclasses import replace

import pytest

from airflow_rabbitmq_spark.amqp import outbox as module
from airflow_rabbitmq_spark.amqp.blocking import Operations
from airflow_rabbitmq_spark.amqp.messages import outgoing
from airflow_rabbitmq_spark.amqp.outbox import Outbox
from airflow_rabbitmq_spark.exceptions import AccessRefused
from airflow_rabbitmq_spark.hooks.rabbitmq import RabbitMQHook
from stack.proxy import Proxy


@pytest.fixture
def hook(broker, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_HOOK", broker.connection())
    with RabbitMQHook("hook") as opened:
        yield opened


@pytest.fixture
def exchange(hook):
    name = f"events-{uuid.uuid4().hex}"
    yield name
    hook.delete_exchange(name)


@pytest.fixture
def queue(hook, exchange):
    """Bound to everything of the exchange."""
    hook.declare_exchange(exchange)
    hook.declare_queue(exchange)
    hook.bind_queue(exchange, exchange, "#")
    yield exchange
    hook.delete_queue(exchange)


@pytest.fixture
def proxy(broker):
    with Proxy(broker.port) as running:
        yield running


@pytest.fixture
def make(broker, proxy, exchange):
    """Makes outboxes that reach the broker through the proxy."""

    def outbox(**options):
        return Outbox(
            exchange,
            find=lambda: replace(broker.endpoint(), hosts=(("127.0.0.1", proxy.port),), connection_timeout=2.0),
            make=lambda text: outgoing("", "k", text),
            **{"size": 1000, "flush_timeout": 20, **options},
        )

    return outbox


def bodies(hook, queue):
    found = []
    while (message := hook.get(queue)) is not None:
        found.append(message.body.decode())
    return found


def wait_until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_it_delivers_in_order_and_makes_its_exchange(hook, make, exchange):
    assert not hook.exchange_exists(exchange)
    outbox = make()
    assert outbox.flush()  # nothing to do: no connection
    outbox.put("nobody listens yet")
    assert outbox.flush()
    assert hook.exchange_exists(exchange)
    hook.declare_queue(exchange)
    hook.bind_queue(exchange, exchange, "k")
    for n in range(500):
        outbox.put(str(n))
    assert outbox.flush()
    assert bodies(hook, exchange) == [str(n) for n in range(500)]
    assert (outbox.delivered, outbox.dropped) == (501, 0)
    hook.delete_queue(exchange)


def test_who_falls_silent_has_no_thread_and_no_connection(hook, make, queue, proxy, monkeypatch):
    monkeypatch.setattr(module, "IDLE", 0.2)
    outbox = make()
    for n in (1, 2):
        outbox.put(str(n))
        assert outbox.flush()
        wait_until(lambda: outbox._thread is None)
        wait_until(lambda: not proxy._peer)
        assert proxy.accepted == n
    assert bodies(hook, queue) == ["1", "2"]


@pytest.mark.parametrize("fault", ["refuse", "black_hole"])
def test_a_broker_that_is_away(hook, make, queue, proxy, monkeypatch, caplog, fault):  # noqa: PLR0917 - fixtures
    monkeypatch.setattr(module, "LONGEST_PAUSE", 0.2)
    monkeypatch.setattr(module, "CONFIRM_TIMEOUT", 1.0)
    outbox = make(size=10, flush_timeout=1)
    outbox.put("before")
    assert outbox.flush()
    getattr(proxy, fault)()
    with caplog.at_level(logging.WARNING):
        for n in range(30):
            outbox.put(str(n))
        assert not outbox.flush()
        assert not outbox.flush()  # and this one does not wait
        wait_until(lambda: outbox._failures >= 2)
        said = [record.message for record in caplog.records if record.name == module.__name__]
        assert len(said) == 1, said
        assert "are not delivered" in said[0]
        proxy.restore()
        outbox._flush_timeout, outbox._given_up = 30, False
        wait_until(outbox.flush)
        said = [record.message for record in caplog.records if record.name == module.__name__]
        assert len(said) == 2, said
        assert "delivered again" in said[1]
    # The oldest went; the newest are all there. One in flight when the line went dead may be there twice.
    assert outbox.dropped >= 20
    kept = bodies(hook, queue)
    assert kept[0] == "before"
    assert list(dict.fromkeys(kept))[-10:] == [str(n) for n in range(20, 30)]


def test_what_is_refused_does_not_hold_up_the_rest(hook, make, exchange, caplog):
    hook.declare_exchange(exchange)
    hook.declare_queue(exchange, arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
    hook.bind_queue(exchange, exchange, "#")
    outbox = make()
    for n in range(20):
        outbox.put(str(n))
    assert outbox.flush()
    assert outbox.dropped > 0
    assert outbox.delivered + outbox.dropped == 20
    assert len([record for record in caplog.records if "refused the message" in record.message]) == 1
    hook.delete_queue(exchange)


def test_what_cannot_be_written_does_not_come_back_for_ever(hook, make, queue, caplog):
    outbox = make()

    def picky(text):
        if text == "bad":
            raise ValueError("not this one")
        return outgoing("", "k", text)

    outbox._make = picky
    for text in ("a", "bad", "b"):
        outbox.put(text)
    assert outbox.flush()
    assert bodies(hook, queue) == ["a", "b"]
    assert (outbox.delivered, outbox.dropped) == (2, 1)
    assert "ValueError: not this one" in caplog.text


def test_who_may_publish_need_not_be_allowed_to_declare(hook, broker, make, exchange, queue):
    broker.ctl("add_user", "teller", "secret")
    try:
        broker.ctl("set_permissions", "-p", "/", "teller", "^$", f"^{exchange}$", "^$")
        teller = replace(broker.endpoint(), username="teller", password="secret")
        with Operations(teller) as operations, pytest.raises(AccessRefused):
            operations.declare_exchange(exchange)
        outbox = make()
        outbox._find = lambda: teller
        outbox.put("x")
        assert outbox.flush()
        assert bodies(hook, queue) == ["x"]
    finally:
        broker.ctl("delete_user", "teller")


def test_a_forked_child_has_its_own(hook, make, queue, proxy):
    """A scheduler's executor forks while the scheduler's thread is at work."""
    outbox = make()
    outbox.put("parent 1")
    assert outbox.flush()
    proxy.slow(0.05)
    for n in (2, 3):
        outbox.put(f"parent {n}")
    child = os.fork()
    if child == 0:
        try:
            assert outbox._thread is None
            outbox.put("child")
            os._exit(0 if outbox.flush() else 1)
        finally:
            os._exit(2)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    outbox.put("parent 4")
    assert outbox.flush()
    proxy.slow(0)
    found = bodies(hook, queue)
    assert sorted(found) == ["child", "parent 1", "parent 2", "parent 3", "parent 4"]
    assert [text for text in found if text != "child"] == [f"parent {n}" for n in (1, 2, 3, 4)]
