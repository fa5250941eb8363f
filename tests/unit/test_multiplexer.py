"""What a subscription refuses before anything is sent: one bad name must cost no other wait."""

from __future__ import annotations

import pytest

from airflow_rabbitmq_spark.amqp.endpoint import Endpoint
from airflow_rabbitmq_spark.amqp.multiplexer import Multiplexer
from airflow_rabbitmq_spark.exceptions import ConfigurationError


@pytest.mark.parametrize("name", ["", "x" * 256, "ä" * 128, "\ud800", None, 7])
def test_what_is_no_name_of_a_queue(name):
    multiplexer = Multiplexer(Endpoint.from_uri("amqp://guest:guest@localhost/"))
    with pytest.raises(ConfigurationError, match="is no queue's name: that is a text of 1 to 255 bytes"):
        multiplexer.subscribe(name)


@pytest.mark.parametrize("name", ["x", "x" * 255, "ä" * 127])
def test_what_is_one(name):
    assert Multiplexer(Endpoint.from_uri("amqp://guest:guest@localhost/")).subscribe(name).queue == name
