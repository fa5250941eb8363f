"""Whatever somebody sends is refused with a sentence or read, and nothing else; ``python -m fuzz`` tries far more of it."""

from __future__ import annotations

import json
import struct

import pika
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from airflow_rabbitmq_spark.amqp.frames import MAX_PROPERTIES_BYTES, BoundedAssembler, read_frame
from airflow_rabbitmq_spark.job.events import MAX_CONTAINERS, MAX_VALUES, Kind, decode, shape_problem
from fuzz import seeds
from fuzz.oracle import check_event, check_frame, check_message

MANY = settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=10**300, max_value=10**310)
    | st.floats()
    | st.text()
    | st.sampled_from(["\0", "\x1b[2J", "\u202e", "\ud800", "9" * 600]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
WHOLE = json.loads(next(iter(seeds.events())))


@MANY
@given(st.binary(max_size=2000))
def test_bytes(body):
    assert check_event(body) is None
    check_message(body, pika.BasicProperties(), routing_key=body[:200])


@MANY
@given(
    st.dictionaries(st.sampled_from(sorted(WHOLE)), JSON, max_size=3),
    st.dictionaries(
        st.sampled_from(["fraction", "text", "metrics", "host", "pid", "ui", "application_id", "away", "result"]), JSON
    ),
    st.sampled_from(list(Kind)),
)
def test_events_of_the_wrong_types(changed, data, kind):
    event = {**WHOLE, "type": f"airflow.spark.job.{kind.value}", "data": data, **changed}
    body = json.dumps(event).encode("utf-8", "surrogatepass")
    check_event(body)
    check_message(body, pika.BasicProperties(content_type="application/cloudevents+json"))


@pytest.mark.parametrize("body", [*seeds.events(), b"[" * 24_000, b'{"a":' * 20_000, b"9" * 2_000_000])
def test_what_fuzzing_begins_with(body):
    check_event(body)
    check_message(body, pika.BasicProperties(content_type="application/json"))


@MANY
@given(st.sampled_from([*seeds.events()]), st.integers(0, 400), st.integers(0, 10), st.binary(max_size=10))
def test_events_with_bytes_changed(body, at, cut, instead):
    check_event(body[:at] + instead + body[at + cut :])


AMQP = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.text()
    | st.binary()
    | st.decimals(allow_nan=False, allow_infinity=False, places=2, min_value=-9, max_value=9)
    | st.datetimes(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@MANY
@given(
    st.dictionaries(st.text(max_size=20) | st.binary(max_size=9), AMQP, max_size=4),
    st.sampled_from(["application/json", None, b"\xff", "x/y+json"]),
    st.none() | st.integers(-(2**63), 2**64) | st.text() | st.binary() | st.datetimes(),
    st.binary(max_size=50) | JSON.map(lambda value: json.dumps(value).encode("utf-8", "surrogatepass")),
)
def test_headers_and_properties(headers, content_type, anything, body):
    properties = pika.BasicProperties(
        headers=headers,
        content_type=content_type,
        message_id=anything,
        timestamp=anything,
        priority=anything,
        expiration=anything,
    )
    check_message(body, properties, routing_key=anything)


@MANY
@given(st.binary(max_size=300))
@example(b"\x01al" + bytes(8))
@example(b"\x01\xffS" + struct.pack(">I", 1) + b"\xff")
def test_header_tables(entries):
    buffer = seeds.header_frame(entries)
    check_frame(buffer)
    # Byte by byte, as it may arrive: nothing before it is whole.
    assert read_frame(buffer[:-1]) == (0, None)
    assert read_frame(buffer)[0] == len(buffer)


@pytest.mark.parametrize("name", seeds.HEADERS)
def test_headers_that_pika_cannot_read_are_said(name):
    consumed, frame = read_frame(seeds.header_frame(seeds.HEADERS[name]) + b"more")
    assert consumed == len(seeds.header_frame(seeds.HEADERS[name]))
    assert frame.body_size == 2
    assert frame.properties.headers is None
    assert "cannot be read" in frame.properties.problem or f"{MAX_PROPERTIES_BYTES:,}" in frame.properties.problem
    # Other frames are pika's business.
    assert read_frame(b"\x08\0\0\0\0\0\0\xce")[0] == 8


def test_a_large_body_is_not_put_together():
    assembler = BoundedAssembler(limit=10)
    for size, body, problem in ((10, b"0123456789", None), (11, b"", "it has 11 bytes, and 10 are read at most")):
        properties = pika.BasicProperties()
        assembler.process(pika.frame.Method(1, pika.spec.Basic.Deliver("c", 1)))
        assembler.process(pika.frame.Header(1, size, properties))
        assert assembler.process(pika.frame.Body(1, b"01234")) is None
        _, _, got = assembler.process(pika.frame.Body(1, b"567890"[: size - 5]))
        assert got == body
        assert getattr(properties, "problem", None) == problem


@pytest.mark.parametrize(
    ("body", "fits"),
    [
        (b"[" + b"[]," * (MAX_CONTAINERS - 2) + b"[]]", True),
        (b"[" + b"[]," * MAX_CONTAINERS + b"[]]", False),
        (b"[" + b"1," * (MAX_VALUES - 1) + b"1]", True),
        (b"[" + b"1," * MAX_VALUES + b"1]", False),
        (b"{" + b",".join(b'"%d":1' % number for number in range(MAX_VALUES // 2)) + b"}", True),
        (b"{" + b",".join(b'"%d":1' % number for number in range(MAX_VALUES)) + b"}", False),
        # In a text they are no values, whatever is escaped in it.
        (json.dumps({"text": '[{,"\\' * MAX_VALUES}).encode(), True),
        (json.dumps(["[" * MAX_VALUES, []] * 3).encode(), True),
        (b'"' + b'\\"' * 500_000 + b"[" * MAX_VALUES, True),
    ],
)
def test_what_a_json_decoder_is_given(body, fits):
    assert (shape_problem(body) is None) == fits
    if not fits:
        with pytest.raises(ValueError, match="has more than 100,000 values, or 25,000 lists and objects among them"):
            decode(body)
