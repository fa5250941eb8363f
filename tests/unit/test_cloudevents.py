"""CloudEvents as they are written: by table, and read back."""

from __future__ import annotations

import base64
import json
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_rabbitmq_spark.cloudevents import check_attributes, encode
from airflow_rabbitmq_spark.exceptions import ConfigurationError

REQUIRED = {"id": "1", "source": "/s", "type": "t"}


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"a": 1}, {"data": {"a": 1}, "datacontenttype": "application/json"}),
        ([1, None], {"data": [1, None], "datacontenttype": "application/json"}),
        ("tëxt", {"data": "tëxt", "datacontenttype": "text/plain"}),
        (b"\0\xff", {"data_base64": "AP8=", "datacontenttype": "application/octet-stream"}),
        (bytearray(b"x"), {"data_base64": "eA==", "datacontenttype": "application/octet-stream"}),
        (None, {"data": None, "datacontenttype": "application/json"}),
    ],
)
def test_data(data, expected):
    event = json.loads(encode(REQUIRED, data))
    assert datetime.fromisoformat(event.pop("time")).tzinfo is not None
    assert event == {"specversion": "1.0", **REQUIRED, **expected}


def test_what_is_given_comes_before_what_is_made_up():
    given = {**REQUIRED, "time": "2026-01-01T00:00:00Z", "datacontenttype": "image/png", "subject": "x", "myext": 3}
    event = json.loads(encode(given, b"png"))
    assert event == {"specversion": "1.0", **given, "data_base64": base64.b64encode(b"png").decode()}


@pytest.mark.parametrize("data", [object(), {1, 2}, float("nan"), {"a": datetime(2026, 1, 1)}, "half \ud800"])  # noqa: DTZ001
def test_what_json_cannot_hold(data):
    with pytest.raises(ConfigurationError, match="cannot be written as JSON"):
        encode(REQUIRED, data)


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ({}, "has a `type`"),
        ({"type": ""}, "has a `type`"),
        ({"type": "t", "id": ""}, "`id` is empty"),
        ({"type": "t", "source": ""}, "`source` is empty"),
        ({"type": "t", "my-ext": 1}, "'my-ext': names have small letters and digits only"),
        ({"type": "t", "Subject": 1}, "'Subject'"),
        ({"type": "t", 1: 1}, "1: names"),
        ({"type": "t", "data": 1}, "`data` is set by itself"),
        ({"type": "t", "specversion": "1.0"}, "`specversion` is set by itself"),
    ],
)
def test_what_is_no_event(attributes, said):
    with pytest.raises(ConfigurationError, match=said):
        check_attributes(attributes)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON)
def test_whatever_json_holds_survives(data):
    assert json.loads(encode(REQUIRED, data))["data"] == data


@given(st.binary())
def test_whatever_bytes_survive(data):
    assert base64.b64decode(json.loads(encode(REQUIRED, data))["data_base64"]) == data
