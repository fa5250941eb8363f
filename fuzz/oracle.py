"""What must hold of anything that somebody may send; the fuzzer and the tests ask here.

Each function raises AssertionError, or whatever escapes of the code under test, when it does not hold.
"""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pika
from airflow.sdk.execution_time.comms import _new_encoder
from pika.exceptions import InvalidFrameError

from airflow_rabbitmq_spark.amqp.connection import Message
from airflow_rabbitmq_spark.amqp.frames import read_frame
from airflow_rabbitmq_spark.exceptions import EventInvalid
from airflow_rabbitmq_spark.job.events import Event, decode, encode
from airflow_rabbitmq_spark.job.text import block, line, number
from airflow_rabbitmq_spark.triggers.message import matches, payload
from airflow_rabbitmq_spark.triggers.spark_job import describe

_encoder = _new_encoder()


def check_event(body: bytes) -> Event | None:
    """Refused with one short sentence, or an event that can be shown, stored and passed on."""
    try:
        event = decode(body)
    except EventInvalid as error:
        text = str(error)
        assert 0 < len(text) < 500
        return None
    shown = describe(event)
    assert len(shown) < 5_000
    assert shown.isprintable()
    for value in event.data.values():
        assert line(value).isprintable()
        assert all(one.isprintable() for one in block(value).split("\n"))
        assert number(value) is None or number(value) == value
    assert decode(encode(event)) == event
    return event


def check_message(body: bytes, properties: pika.BasicProperties, routing_key: Any = "key") -> dict[str, Any]:
    """Becomes JSON that Airflow can send to itself and a database can hold, whatever the message is."""
    message = Message(body, properties, exchange="", routing_key=routing_key, redelivered=False, tag=1)
    content = payload(message)
    text = json.dumps(content, allow_nan=False)
    assert json.loads(text) == content
    text.encode()
    # PostgreSQL's JSON cannot hold it.
    assert r"\u0000" not in text.replace(r"\\", "")
    _encoder.encode(content)
    matches({"body.a": 1, "headers.a.0.b": [None, "x"], "routing_key": "k"}, content)
    return content


def check_frame(buffer: bytes) -> None:
    """A header frame is read, or is not whole yet: nothing that a publisher writes into one is an error."""
    consumed, frame = 0, None
    with contextlib.suppress(InvalidFrameError):
        consumed, frame = read_frame(buffer)
    assert 0 <= consumed <= len(buffer)
    if frame is not None and isinstance(getattr(frame, "properties", None), pika.BasicProperties):
        check_message(b"{}", frame.properties)
