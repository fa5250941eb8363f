"""Events as they travel: what is written, what is read, and each reason to refuse."""

from __future__ import annotations

import gc
import json
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika import BasicProperties

from airflow_rabbitmq_spark.amqp.connection import Message
from airflow_rabbitmq_spark.exceptions import EventInvalid, ResultInvalid
from airflow_rabbitmq_spark.job.events import (
    COLLECTOR_OFF,
    FINAL,
    MAX_DEPTH,
    MAX_EVENT_BYTES,
    MAX_INTEGER,
    MAX_RESULT_BYTES,
    Event,
    Kind,
    check_result,
    collector_off,
    decode,
    encode,
    json_problem,
)
from airflow_rabbitmq_spark.triggers.message import payload

WHOLE = {
    "specversion": "1.0",
    "id": "1-2-3",
    "source": "/airflow/dag/task",
    "type": "airflow.spark.job.progress",
    "subject": "a" * 32,
    "time": "2026-01-02T03:04:05.678901+00:00",
    "datacontenttype": "application/json",
    "sequence": 7,
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "data": {"fraction": 0.5},
}


def body(**changes: object) -> bytes:
    attributes = {name: value for name, value in {**WHOLE, **changes}.items() if value is not ...}
    return json.dumps(attributes).encode()


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("sequence", [None, 1, MAX_INTEGER])
@pytest.mark.parametrize("traceparent", [None, "00-a-b-01"])
def test_what_is_written_is_read(kind, sequence, traceparent):
    event = Event(
        kind=kind,
        subject="0" * 32,
        source="/airflow/d/t",
        sequence=sequence,
        data={"text": "é\u2028\N{SNOWMAN}", "list": [1, None, True, 0.1], "deep": {"a": {}}},
        traceparent=traceparent,
    )
    assert decode(encode(event)) == event
    assert event.is_final == (kind in FINAL)


def test_the_form_is_cloudevents():
    event = Event(
        kind=Kind.PROGRESS,
        subject="a" * 32,
        source="/airflow/dag/task",
        sequence=7,
        data={"fraction": 0.5},
        id="1-2-3",
        time=datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=timezone.utc),
        traceparent=WHOLE["traceparent"],
    )
    assert json.loads(encode(event)) == WHOLE
    assert decode(body()) == event


def test_what_may_be_missing():
    event = decode(body(sequence=..., traceparent=..., data=..., datacontenttype=...))
    assert (event.sequence, event.traceparent, event.data) == (None, None, {})


@pytest.mark.parametrize(
    ("text", "offset"),
    [("2026-01-02T03:04:05Z", 0), ("2026-01-02T05:04:05+02:00", 0), ("2026-01-02T03:04:05+00:00", 0)],
)
def test_times_of_other_languages(text, offset):
    assert decode(body(time=text)).time - datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc) == timedelta(offset)


def test_attributes_of_others_do_not_disturb():
    assert decode(body(comment="x", dataschema="https://example.org/schema")).subject == "a" * 32


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (
            b"x" * (MAX_EVENT_BYTES + 1),
            f"it has {MAX_EVENT_BYTES + 1} bytes, and an event has {MAX_EVENT_BYTES} at most",
        ),
        (b'{"a": "\xff"}', "it is not UTF-8 (byte 7)"),
        (b"", "it is not JSON"),
        (b"{", "it is not JSON"),
        (b"[" * 20_000, "it is nested too deep"),
        (b"[" * 100_000, "it has more than 100,000 values, or 25,000 lists and objects among them"),
        (b'{"a": NaN}', "it has the number NaN, which JSON does not know"),
        (b'{"a": -Infinity}', "it has the number -Infinity, which JSON does not know"),
        (b'{"a": ' + b"1" * 5000 + b"}", "it is not JSON: Exceeds the limit"),
        (b"[]", "it is a JSON list, not an object"),
        (b"null", "it is a JSON NoneType, not an object"),
        (body(specversion=...), "its specversion is not '1.0'"),
        (body(specversion="0.3"), "its specversion is not '1.0'"),
        (body(type=...), "its type is not a text of 1 to 1024 characters"),
        (body(type="com.example.progress"), "its type does not start with 'airflow.spark.job.'"),
        (
            body(type="airflow.spark.job.exploded"),
            "its kind is none of started, progress, resumed, succeeded, failed, cancelled, lost, cancel",
        ),
        (body(time="yesterday"), "its time is not in RFC 3339 form"),
        (body(time=5), "its time is not a text"),
        (body(time="2026-01-02T03:04:05"), "its time has no time zone"),
        (body(sequence=0), "its sequence is not a whole number from 1"),
        (body(sequence=-1), "its sequence is not a whole number from 1"),
        (body(sequence=True), "its sequence is not a whole number from 1"),
        (body(sequence="1"), "its sequence is not a whole number from 1"),
        (body(sequence=1.0), "its sequence is not a whole number from 1"),
        (body(sequence=MAX_INTEGER + 1), "its sequence is not a whole number from 1"),
        (body(traceparent=[]), "its traceparent is not a text"),
        (body(data=[]), "its data is not an object"),
        (body(data="text"), "its data is not an object"),
        (body(data={"n": MAX_INTEGER + 1}), "its data has a whole number past 64 bits at ['n']"),
        (b'{"n": 1e999}'.join(body(data="HERE").split(b'"HERE"')), "its data has inf at ['n']"),
        (body(data={"a": ["\ud800"]}), "its data has half a character (a lone surrogate) at ['a'][0]"),
        (body(data={"\udfff": 1}), "its data has a key that is not a text"),
        (body(subject=...), "its subject is not a text of 1 to 1024 characters"),
        (body(subject=""), "its subject is not a text of 1 to 1024 characters"),
        (body(source=["x"]), "its source is not a text of 1 to 1024 characters"),
        (body(source="x" * 1025), "its source is not a text of 1 to 1024 characters"),
        (body(id=None), "its id is not a text of 1 to 1024 characters"),
        (body(id="\ud83d"), "its id has half a character (a lone surrogate)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_reason_to_refuse(message, why):
    with pytest.raises(EventInvalid) as caught:
        decode(message)
    assert str(caught.value).startswith(why)
    assert len(str(caught.value)) < 300


def deep(levels: int) -> object:
    value: object = 1
    for _ in range(levels):
        value = [value]
    return value


@contextmanager
def collections():
    """The generations that the garbage collector goes through meanwhile."""
    found = []

    def begins(phase, info):
        if phase == "start":
            found.append(info["generation"])

    gc.collect()  # so that what came before counts for nothing
    gc.callbacks.append(begins)
    try:
        yield found
    finally:
        gc.callbacks.remove(begins)


LISTS = {"lists": [[] for _ in range(20_000)]}


MESSAGE = Message(
    json.dumps(LISTS).encode(),
    BasicProperties(content_type="application/json"),
    exchange="",
    routing_key="q",
    redelivered=False,
    tag=1,
)
EVENT = body(data=LISTS)


@pytest.mark.parametrize("read", [lambda: decode(EVENT), lambda: payload(MESSAGE)], ids=["event", "message"])
def test_a_message_of_many_lists_begins_one_garbage_collection_at_the_most(read):
    """One of all that a triggerer has takes a tenth of a second, in which its event loop does nothing else."""
    with collections() as found:
        read()
    assert len(found) <= 1
    assert gc.isenabled()


def test_the_garbage_collector_is_on_again_when_the_last_is_done():
    with ExitStack() as first, ExitStack() as second:
        first.enter_context(collector_off(COLLECTOR_OFF))
        second.enter_context(collector_off(COLLECTOR_OFF))
        first.close()
        assert not gc.isenabled()
        second.close()
        assert gc.isenabled()
    with collector_off(COLLECTOR_OFF - 1):
        assert gc.isenabled()


def test_a_garbage_collector_that_was_off_stays_off():
    gc.disable()
    try:
        decode(EVENT)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_the_depth_of_data_is_limited():
    assert decode(body(data={"a": deep(MAX_DEPTH - 1)})).data == {"a": deep(MAX_DEPTH - 1)}
    with pytest.raises(EventInvalid, match=f"its data is nested more than {MAX_DEPTH} deep"):
        decode(body(data={"a": deep(MAX_DEPTH)}))


@given(st.binary(max_size=200) | st.text().map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_an_event_or_refused(message):
    with pytest.raises(EventInvalid):
        decode(message)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(st.sampled_from(sorted(WHOLE)), JSON)
def test_any_attribute_of_any_type_is_read_or_refused(name, value):
    try:
        event = decode(json.dumps({**WHOLE, name: value}).encode("utf-8", "surrogatepass"))
    except EventInvalid:
        return
    # What was read can be passed on: to a database, to a log, to another language.
    assert decode(encode(event)) == event


@given(JSON)
def test_what_passes_the_check_of_results_is_json_for_everybody(value):
    if json_problem(value) is None and "\\u0000" not in json.dumps(value).replace("\\\\", ""):
        text = json.dumps(value, allow_nan=False).encode()
        assert json.loads(text) == value == check_result(value)
    else:
        with pytest.raises(ResultInvalid):
            check_result(value)


@pytest.mark.parametrize("data", [{"a": object()}, {"a": float("nan")}, {"a": {1, 2}}, {"a": deep(100_000)}])
def test_what_is_not_json_cannot_be_written(data):
    with pytest.raises(EventInvalid, match="The data of a progress event is not JSON"):
        encode(Event(kind=Kind.PROGRESS, subject="s", source="/s", data=data))


@pytest.mark.parametrize(
    ("result", "problem"),
    [
        (object(), "has a builtins.object:"),
        ({"model": [1, {"when": datetime.now(timezone.utc)}]}, "has a datetime.datetime at ['model'][1]['when']:"),
        ({"a": {1}}, "has a builtins.set at ['a']:"),
        ({"a": b"x"}, "has a builtins.bytes at ['a']:"),
        ([float("nan")], "has nan at [0]:"),
        (float("inf"), "has inf:"),
        ({1: "x"}, "has a key that is not a text but int:"),
        (2**63, "has a whole number past 64 bits:"),
        (-(2**63) - 1, "has a whole number past 64 bits:"),
        ("\ud800", "has half a character (a lone surrogate):"),
        (deep(MAX_DEPTH + 1), f"is nested more than {MAX_DEPTH} deep at [0]"),
        ({"k" * 100: {"a": object()}}, f"has a builtins.object at ['{'k' * 39}]['a']:"),
    ],
)
def test_a_result_that_is_not_json(result, problem):
    with pytest.raises(ResultInvalid) as caught:
        check_result(result)
    text = str(caught.value)
    assert text.startswith(f"The job's result {problem}"), text
    assert "float(x) or x.item() for a NumPy number" in text


@pytest.mark.parametrize(
    "result", [None, True, 0, 2**63 - 1, -(2**63), 1e308, "", "é", [], {}, {"a": [{"b": None}]}, (1,)]
)
def test_a_result_that_is_json(result):
    assert check_result(result) == (list(result) if isinstance(result, tuple) else result)


def test_the_size_of_a_result_counts_bytes_not_characters():
    check_result("é" * 4, limit=10)
    with pytest.raises(ResultInvalid, match=r"has 12 bytes as JSON and the limit is 10.*max_result_bytes"):
        check_result("é" * 5, limit=10)


def test_who_may_raise_the_limit_is_told_so():
    with pytest.raises(ResultInvalid, match="pass its path, or raise max_result_bytes"):
        check_result("xx", limit=3)
    with pytest.raises(ResultInvalid, match=r"pass its path\.$"):
        check_result("x" * MAX_RESULT_BYTES)
