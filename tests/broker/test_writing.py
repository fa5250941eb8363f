"""Frames that are written together are the same frames: messages of all sizes, in order, and nothing stays behind."""

from __future__ import annotations

import random

import pytest

from airflow_rabbitmq_spark.amqp.blocking import Operations, consume
from airflow_rabbitmq_spark.amqp.publisher import WINDOW, Outgoing, Publisher
from airflow_rabbitmq_spark.amqp.writing import TOGETHER
from airflow_rabbitmq_spark.exceptions import Unroutable


@pytest.fixture
def queue(broker_endpoint):
    with Operations(broker_endpoint) as operations:
        operations.declare_queue("writing")
        yield "writing"
        operations.delete_queue("writing")


def received(endpoint, queue, count):
    bodies = []
    consume(endpoint, queue, lambda message: bodies.append(message.body), max_messages=count, idle_timeout=30)
    return bodies


def test_bodies_of_every_size_arrive_whole_and_in_order(broker_endpoint, queue):
    edges = [TOGETHER, broker_endpoint.frame_max, 2 * broker_endpoint.frame_max]
    sizes = [0, 1, *(edge + offset for edge in edges for offset in (-100, -8, -1, 0, 1, 100)), 0, 3 * 2**20]
    chance = random.Random(7)
    bodies = [chance.randbytes(size) for size in sizes]
    with Publisher(broker_endpoint) as publisher:
        assert publisher.publish_many(Outgoing(body, queue) for body in bodies) == len(bodies)
        for body in bodies:
            publisher.publish("", queue, body)
    assert received(broker_endpoint, queue, 2 * len(bodies)) == [*bodies, *bodies]


def test_more_than_a_window(broker_endpoint, queue):
    bodies = [str(number).encode() for number in range(2 * WINDOW + 3)]
    with Publisher(broker_endpoint) as publisher:
        publisher.publish_many(Outgoing(body, queue) for body in bodies)
    assert received(broker_endpoint, queue, len(bodies)) == bodies


def test_what_was_sent_before_an_error_of_the_callers_is_not_held_back(broker_endpoint, queue):
    def broken():
        yield Outgoing(b"first", queue)
        raise RuntimeError("out of messages")

    with Publisher(broker_endpoint) as publisher:
        with pytest.raises(RuntimeError, match="out of messages"):
            publisher.publish_many(broken())
        assert received(broker_endpoint, queue, 1) == [b"first"]
        publisher.publish("", queue, b"second")  # and the next goes as if nothing had been
    assert received(broker_endpoint, queue, 1) == [b"second"]


def test_one_that_nobody_takes_is_told_from_its_neighbours(broker_endpoint, queue):
    messages = [Outgoing(b"taken", queue), Outgoing(b"not", "no-such-queue"), Outgoing(b"taken", queue)]
    with Publisher(broker_endpoint) as publisher:
        with pytest.raises(Unroutable, match=r"\(1 messages before it were confirmed\.\)"):
            publisher.publish_many(messages)
        publisher.publish("", queue, b"after")
