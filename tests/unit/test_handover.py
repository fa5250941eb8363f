"""What goes from Airflow to the driver in one environment variable."""

from __future__ import annotations

import base64
import json
import re

import pytest

from airflow_rabbitmq_spark.amqp.endpoint import Endpoint
from airflow_rabbitmq_spark.exceptions import ConfigurationError
from airflow_rabbitmq_spark.job.handover import VARIABLE, Handover, Settings
from airflow_rabbitmq_spark.job.topology import Job

CANARY = "canary-9d2f"
ENDPOINT = Endpoint.from_uri(
    f"amqps://user:{CANARY}@one.example:5671,two.example/v%2Fhost?heartbeat=7&exchange=my.exchange&retention=60"
)
JOB = Job("dag", "task", "0" * 32, "my.exchange")


@pytest.mark.parametrize("settings", [Settings(), Settings(delivery_timeout=1.5, will_renewal=2.0, max_result_bytes=3)])
@pytest.mark.parametrize("traceparent", [None, "00-a-b-01"])
def test_what_is_handed_over_arrives(settings, traceparent):
    given = Handover(JOB, ENDPOINT, settings, traceparent)
    assert Handover.from_environment(given.to_environment()) == given


def test_from_the_environment_of_the_process(monkeypatch):
    assert Handover.from_environment() is None
    for name, value in Handover(JOB, ENDPOINT).to_environment().items():
        monkeypatch.setenv(name, value)
    assert Handover.from_environment() == Handover(JOB, ENDPOINT)


def test_no_secret_can_be_seen():
    handover = Handover(JOB, ENDPOINT)
    (name, value), *more = handover.to_environment().items()
    assert more == []
    # Spark's own default of spark.redaction.regex, which hides the variable in its web page and its logs.
    assert re.search("(?i)secret|password|token|access[.]?key|credential", name)
    assert CANARY not in repr(handover) + value
    # Spark 4 reads {{NAME}} in it, and shells and properties files have syntax too.
    assert re.fullmatch(r"[A-Za-z0-9+/=]+", value)


def packed(document: object) -> str:
    return base64.b64encode(json.dumps(document).encode()).decode()


def document(**changes: object) -> dict[str, object]:
    whole = json.loads(base64.b64decode(Handover(JOB, ENDPOINT).to_environment()[VARIABLE]))
    return {name: value for name, value in {**whole, **changes}.items() if value is not ...}


def test_outside_airflow():
    assert Handover.from_environment({}) is None
    assert Handover.from_environment({VARIABLE: ""}) is None


def test_a_newer_operators_settings_do_not_disturb_an_older_bundle():
    newer = document(settings={"delivery_timeout": 5.0, "invented_later": True}, more="x")
    handover = Handover.from_environment({VARIABLE: packed(newer)})
    assert handover is not None
    assert handover.settings == Settings(delivery_timeout=5.0)


@pytest.mark.parametrize(
    "value",
    [
        "not base64!",
        base64.b64encode(b"not JSON").decode(),
        base64.b64encode(b"\xff\xfe").decode(),
        packed([]),
        packed(None),
        packed(document(job=...)),
        packed(document(job={"dag_id": "d"})),
        packed(document(endpoint=...)),
        packed(document(endpoint={"host": "h", "login": "u", "password": CANARY, "heartbeat": "soon"})),
        packed(document(settings=[1])),
        packed(document(settings=None)),
    ],
)
def test_what_cannot_be_read_is_said(value):
    with pytest.raises(ConfigurationError) as caught:
        Handover.from_environment({VARIABLE: value})
    text = str(caught.value)
    assert text.startswith(f"The environment variable {VARIABLE} cannot be read (")
    assert "unset it to run this application by hand" in text
    assert CANARY not in text + repr(caught.value.__cause__)
