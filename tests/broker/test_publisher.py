"""Publishing: what counts as published, and each way in which a message is not taken."""

from __future__ import annotations

import re
import time
import uuid

import pika
import pytest

from airflow_rabbitmq_spark.amqp.blocking import Operations
from airflow_rabbitmq_spark.amqp.publisher import CHUNK, WINDOW, WINDOW_BYTES, Outgoing, Publisher
from airflow_rabbitmq_spark.exceptions import BrokerBlocked, ConnectionFailed, Rejected, Unconfirmed, Unroutable
from stack.proxy import Proxy
from tests.broker.drivers import alarm, eventually, through


@pytest.fixture
def operations(broker_endpoint):
    with Operations(broker_endpoint) as opened:
        yield opened


@pytest.fixture
def queue(broker_endpoint):
    name = f"test-{uuid.uuid4().hex}"
    with Operations(broker_endpoint) as operations:
        operations.declare_queue(name)
    yield name
    # Another connection: the broker may have been restarted.
    with Operations(broker_endpoint) as operations:
        operations.delete_queue(name)


def waiting(operations, queue) -> int:
    return operations.inspect_queue(queue).messages


def test_published_is_stored(broker_endpoint, operations, queue):
    with Publisher(broker_endpoint, connection_name="my name") as publisher:
        publisher.publish("", queue, b"one")
        publisher.publish("", queue, b"two", pika.BasicProperties(delivery_mode=2, headers={"a": 1}))
        assert waiting(operations, queue) == 2
    first, second = operations.get(queue), operations.get(queue)
    assert (first.body, first.properties.delivery_mode) == (b"one", 2)
    assert (second.body, second.headers) == (b"two", {"a": 1})


def test_the_connection_has_a_name(broker, broker_endpoint):
    name = f"name-{uuid.uuid4().hex}"
    with Publisher(broker_endpoint, connection_name=name):
        assert name in broker.connection_names()
    eventually(lambda: name not in broker.connection_names())


def test_what_no_queue_is_bound_for(broker_endpoint, queue):
    with Publisher(broker_endpoint) as publisher:
        with pytest.raises(Unroutable, match=r"No queue is bound to exchange '\(default\)' for routing key 'nowhere'"):
            publisher.publish("", "nowhere", b"x")
        with pytest.raises(Unroutable, match=r"exchange 'amq\.topic'"):
            publisher.publish("amq.topic", "nowhere", b"x", pika.BasicProperties(message_id="mine"))
        publisher.publish("", "nowhere", b"x", mandatory=False)
        # An exchange that is not there closes the channel; the next message finds a new one.
        with pytest.raises(Exception, match="no-such-exchange"):
            publisher.publish("no-such-exchange", queue, b"x")
        publisher.publish("", queue, b"x")


def test_a_full_queue_refuses(broker_endpoint, operations):
    name = f"test-{uuid.uuid4().hex}"
    operations.declare_queue(name, arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
    with Publisher(broker_endpoint) as publisher:
        publisher.publish("", name, b"x")
        with pytest.raises(Rejected, match="refused the message: a queue is full"):
            publisher.publish("", name, b"x")
        operations.purge_queue(name)
        publisher.publish("", name, b"x")
        with pytest.raises(Rejected, match=r"\(\d+ messages before it were confirmed\.\)"):
            publisher.publish_many(Outgoing(b"x", name) for _ in range(100))
    operations.delete_queue(name)


def test_an_alarm_is_told_and_then_over(broker, broker_endpoint, operations, queue):
    with Publisher(broker_endpoint, timeout=1) as publisher:
        publisher.publish("", queue, b"before")
        with alarm(broker):
            for publish in (
                lambda: publisher.publish("", queue, b"during"),
                lambda: publisher.publish_many([Outgoing(b"during", queue)]),
            ):
                with pytest.raises(
                    BrokerBlocked, match=r"blocks publishers \(memory or disk alarm\).*Free memory or disk"
                ):
                    publish()

        def goes_on() -> bool:
            try:
                publisher.publish("", queue, b"after")
            except BrokerBlocked:
                return False
            return True

        eventually(goes_on)


def test_no_answer_ends_too(broker, operations, queue):
    with Proxy(broker.port) as proxy, Publisher(through(proxy, broker), timeout=0.5) as publisher:
        publisher.publish("", queue, b"one")
        proxy.black_hole()
        with pytest.raises(
            Unconfirmed, match=r"has not confirmed the message in 0\.5 s\. It may or may not have been stored"
        ):
            publisher.publish("", queue, b"two")
        with pytest.raises(Unconfirmed):
            publisher.publish_many([Outgoing(b"three", queue)])
        proxy.restore()
        assert waiting(operations, queue) == 1


def test_a_connection_that_was_cut_is_opened_again(broker, operations, queue):
    with Proxy(broker.port) as proxy, Publisher(through(proxy, broker)) as publisher:
        publisher.publish("", queue, b"one")
        for _ in range(3):
            proxy.cut()

            def again() -> bool:
                try:
                    publisher.publish("", queue, b"again")
                except ConnectionFailed:
                    return False  # what was under way when it was cut
                return True

            eventually(again)
        assert waiting(operations, queue) >= 4


def test_a_batch_is_confirmed_whole_and_keeps_its_order(broker_endpoint, operations, queue):
    count, told = 2 * WINDOW + 1, []
    with Publisher(broker_endpoint) as publisher:
        assert publisher.publish_many([]) == 0
        taken = []
        messages = (taken.append(n) or Outgoing(str(n).encode(), queue) for n in range(count))
        assert publisher.publish_many(messages, on_progress=told.append) == count
    assert waiting(operations, queue) == count
    assert [operations.get(queue).body for _ in range(3)] == [b"0", b"1", b"2"]
    assert told == sorted(told)
    assert told[-1] == count
    assert len(told) > 2


def test_a_batch_stops_at_the_first_that_is_not_taken(broker_endpoint, operations, queue):
    taken = []

    def messages():
        for n in range(10 * WINDOW):
            taken.append(n)
            yield Outgoing(str(n).encode(), "nowhere" if n == 5 else queue)

    with Publisher(broker_endpoint) as publisher:
        with pytest.raises(Unroutable, match=r"'nowhere'.*\(5 messages before it were confirmed\.\)"):
            publisher.publish_many(messages())
        # No more than a window was under way when the first five were confirmed.
        assert len(taken) <= WINDOW + 5
        publisher.publish("", queue, b"goes on")


@pytest.mark.parametrize(("size", "most"), [(1, WINDOW), (2**20, WINDOW_BYTES // 2**20)])
def test_no_more_than_a_window_is_unconfirmed(broker, broker_endpoint, queue, size, most):
    taken = []

    def messages():
        for n in range(2 * most):
            taken.append(n)
            yield Outgoing(bytes(size), queue)

    with Publisher(broker_endpoint, timeout=2) as publisher:
        publisher.publish("", queue, b"x")
        broker.suspend()
        try:
            with pytest.raises(Unconfirmed, match=r"\(0 messages before it were confirmed\.\)"):
                publisher.publish_many(messages())
        finally:
            broker.resume()
    assert most // 2 <= len(taken) <= most + 1


def test_who_takes_long_to_make_messages_is_not_taken_for_dead(broker, operations, queue):
    """The broker drops a connection that is silent for two heartbeats: they are answered while the caller is busy."""
    endpoint = broker.endpoint(heartbeat=1)

    def messages():
        yield Outgoing(b"first", queue)
        time.sleep(5)
        assert waiting(operations, queue) == 1
        yield Outgoing(b"second", queue)

    with Publisher(endpoint) as publisher:
        connection = publisher._connection
        assert publisher.publish_many(messages()) == 2
        assert publisher._connection is connection


def test_a_batch_tells_how_much_was_confirmed_when_the_connection_is_lost(broker, operations, queue):
    def messages(proxy):
        for n in range(2 * WINDOW):
            yield Outgoing(str(n).encode(), queue)
        # Whoever is asked for the next has a window unsent or unconfirmed at most, so the first half is confirmed.
        proxy.refuse()
        for _ in range(2 * WINDOW):
            yield Outgoing(b"x", queue)

    with (
        Proxy(broker.port) as proxy,
        Publisher(through(proxy, broker)) as publisher,
        pytest.raises(ConnectionFailed, match=r"\(\d+ messages before it were confirmed\.\)") as lost,
    ):
        publisher.publish_many(messages(proxy))
    told = int(re.search(r"\((\d+) messages", str(lost.value))[1])
    # What was stored is not always told: its confirm may have been on the way.
    assert WINDOW <= told <= waiting(operations, queue)


def test_a_batch_that_was_confirmed_does_not_need_the_connection_again(broker, operations, queue):
    def messages(proxy, publisher):
        yield Outgoing(b"one", queue)
        # That it is in the queue does not say that its confirm is here.
        eventually(lambda: publisher._channel._published == 1 and not publisher._channel._unconfirmed)
        proxy.refuse()
        eventually(lambda: not publisher._connection.is_open)

    with Proxy(broker.port) as proxy, Publisher(through(proxy, broker)) as publisher:
        assert publisher.publish_many(messages(proxy, publisher)) == 1
    assert waiting(operations, queue) == 1


def test_a_large_batch_tells_how_far_it_is(broker_endpoint, queue):
    told = []
    with Publisher(broker_endpoint) as publisher:
        # Each takes longer than the messages of a chunk may.
        messages = (time.sleep(0.15 if n % 1000 == 0 else 0) or Outgoing(b"x", queue) for n in range(6 * CHUNK))
        publisher.publish_many(messages, on_progress=told.append)
    assert len(told) >= 4
    assert told == sorted(told)


def test_an_error_while_messages_are_made_comes_out(broker_endpoint, queue):
    def messages():
        yield Outgoing(b"x", queue)
        raise LookupError("mine")

    with Publisher(broker_endpoint) as publisher, pytest.raises(LookupError, match="mine"):
        publisher.publish_many(messages())


def test_a_broker_that_hangs_ends_in_time(broker, broker_endpoint, queue):
    with Publisher(broker_endpoint, timeout=1) as publisher:
        publisher.publish("", queue, b"x")
        broker.suspend()
        try:
            with pytest.raises(Unconfirmed):
                publisher.publish("", queue, b"x")
        finally:
            broker.resume()
        publisher.publish("", queue, b"x")


def test_closed_twice_and_used_again(broker_endpoint, operations, queue):
    publisher = Publisher(broker_endpoint)
    publisher.close()
    publisher.publish("", queue, b"opens by itself")
    publisher.close()
    publisher.close()
    publisher.publish("", queue, b"and again")
    publisher.close()
    assert waiting(operations, queue) == 2
