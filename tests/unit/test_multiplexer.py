"""What costs no other wait: a name that is none is refused before anything is sent, and no defect leaves anybody waiting."""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref

import pytest

from airflow_rabbitmq_spark.amqp.connection import Connection
from airflow_rabbitmq_spark.amqp.endpoint import Endpoint
from airflow_rabbitmq_spark.amqp.multiplexer import Multiplexer, shared
from airflow_rabbitmq_spark.exceptions import ConfigurationError, RabbitMQSparkError


@pytest.mark.parametrize("name", ["", "x" * 256, "ä" * 128, "\ud800", None, 7])
def test_what_is_no_name_of_a_queue(name):
    multiplexer = Multiplexer(Endpoint.from_uri("amqp://guest:guest@localhost/"))
    with pytest.raises(ConfigurationError, match="is no queue's name: that is a text of 1 to 255 bytes"):
        multiplexer.subscribe(name)


@pytest.mark.parametrize("name", ["x", "x" * 255, "ä" * 127])
def test_what_is_one(name):
    assert Multiplexer(Endpoint.from_uri("amqp://guest:guest@localhost/")).subscribe(name).queue == name


def test_a_defect_ends_every_wait_with_an_error_and_the_next_begins_anew(monkeypatch, caplog):
    """Of a library, say, or a callback: what nobody foresaw must not leave ten thousand tasks waiting for ever."""
    opened = []

    async def broken(*_arguments, **_more):
        opened.append(True)
        raise LookupError("nobody foresaw it")

    monkeypatch.setattr(Connection, "open", broken)
    caplog.set_level(logging.ERROR, "airflow_rabbitmq_spark")

    async def story():
        multiplexer = Multiplexer(Endpoint.from_uri("amqp://guest:canary-5c@localhost/"))
        for round_ in (1, 2):
            async with multiplexer.subscribe("one") as one, multiplexer.subscribe("two") as two:
                for subscription in (one, two):
                    with pytest.raises(RabbitMQSparkError, match=r"^LookupError: nobody foresaw it$"):
                        await asyncio.wait_for(subscription.next(), 60)
            assert len(opened) == round_

    asyncio.run(story())
    # With a traceback, for whoever has to mend it.
    assert [record.exc_info[0] for record in caplog.records] == [LookupError] * 2
    assert "canary-5c" not in caplog.text


def test_one_for_each_loop_and_nothing_of_a_loop_that_has_ended():
    endpoint = Endpoint.from_uri("amqp://guest:guest@localhost/per-loop")

    async def story():
        assert shared(endpoint) is shared(endpoint)
        return weakref.ref(shared(endpoint))

    ended = asyncio.run(story())
    other = asyncio.run(story())
    gc.collect()
    assert ended() is None
    assert other() is not None  # until the next loop asks
