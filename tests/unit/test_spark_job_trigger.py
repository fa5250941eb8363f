"""The trigger as Airflow stores it, and the lines it writes to a task's log."""

from __future__ import annotations

import asyncio
import inspect
import json
import time
from dataclasses import asdict

import pytest
from airflow.sdk._shared.module_loading import import_string

from airflow_rabbitmq_spark.hooks.rabbitmq import RabbitMQHook
from airflow_rabbitmq_spark.job.events import Event, Kind
from airflow_rabbitmq_spark.job.topology import Job
from airflow_rabbitmq_spark.job.watch import Rules
from airflow_rabbitmq_spark.triggers.spark_job import SparkJobTrigger, describe

JOB = Job("d", "t", "0" * 32, "airflow.spark")
REQUIRED = {
    "rabbitmq_conn_id": "broker",
    "spark_conn_id": "spark",
    "job": JOB.to_json(),
    "rules": asdict(Rules(start_by=1.5, lost_grace=2.5, end_by=3.5)),
}
OPTIONAL = {"submission_id": "driver-1", "cancel_grace": 4.5, "fire_after": 5.5}


def test_every_argument_survives_the_database():
    given = {**REQUIRED, **OPTIONAL}
    assert set(inspect.signature(SparkJobTrigger.__init__).parameters) == {"self", *given}
    path, arguments = SparkJobTrigger(**given).serialize()
    assert arguments == given
    again = import_string(path)(**json.loads(json.dumps(arguments)))
    assert again.serialize() == (path, given)
    assert Job.from_json(again.job) == JOB
    assert Rules(**again.rules) == Rules(1.5, 2.5, 3.5)


def test_a_trigger_stored_before_an_upgrade_still_loads():
    # Deferred tasks live through deploys: what came later has a default.
    arguments = SparkJobTrigger(**REQUIRED).serialize()[1]
    assert {name: arguments[name] for name in OPTIONAL} == {
        "submission_id": None,
        "cancel_grace": 10.0,
        "fire_after": 0.0,
    }


@pytest.mark.parametrize(
    ("connection", "reason"),
    [
        (None, "There is no connection 'broker'."),
        ("amqp://u:p@127.0.0.1/?heartbeat=often", "heartbeat"),
        ("postgres://u:p@127.0.0.1/", "postgres"),
    ],
)
def test_without_a_usable_connection_it_says_so_but_not_before_airflow_is_ready_for_it(monkeypatch, connection, reason):
    if connection is not None:
        monkeypatch.setenv("AIRFLOW_CONN_BROKER", connection)
    asked = asyncio.Event()

    async def ask(hook, *, real=RabbitMQHook.amultiplexer):
        try:
            return await real(hook)
        finally:
            asked.set()

    monkeypatch.setattr(RabbitMQHook, "amultiplexer", ask)

    async def story():
        # Nothing is tried again: once it is known that there is no connection, only the time is waited for.
        early = asyncio.ensure_future(anext(SparkJobTrigger(**REQUIRED, fire_after=time.time() + 3600).run()))
        await asyncio.wait_for(asked.wait(), 60)
        done, _ = await asyncio.wait([early], timeout=0.5)
        assert done == set()
        early.cancel()
        return [event.payload async for event in SparkJobTrigger(**REQUIRED, fire_after=time.time() - 1).run()]

    (event,) = asyncio.run(story())
    assert (event["job_id"], event["verdict"]) == (JOB.job_id, "unreachable")
    assert reason in event["reason"]


@pytest.mark.parametrize(
    ("kind", "data", "line"),
    [
        (
            Kind.PROGRESS,
            {"fraction": 0.5, "text": "half", "metrics": {"a": 0.123456789, "n": 3}},
            " 50% half a=0.123457 n=3",
        ),
        (Kind.PROGRESS, {"fraction": None, "text": "some"}, "     some"),
        (Kind.PROGRESS, {}, "    "),
        (Kind.PROGRESS, {"text": "two\nlines\tand  more", "fraction": 1}, "100% two lines and more"),
        (Kind.PROGRESS, {"fraction": "x", "text": ["a"], "metrics": {"a": "b", "c\nd": 1}}, "     (list) c d=1"),
        (Kind.PROGRESS, {"fraction": 1e300, "metrics": {"a": True, "b": 2**62}}, "100% b=4.61169e+18"),
        # What would clear a terminal, or turn a line around.
        (Kind.PROGRESS, {"text": "\x1b[2Jno\u202e\x00"}, r"     \x1b[2Jno\u202e\x00"),
        (
            Kind.PROGRESS,
            {"metrics": {f"m{index}": 1 for index in range(1000)}},
            "     " + " ".join(f"m{n}=1" for n in range(20)),
        ),
        (Kind.STARTED, {"host": "h", "pid": 7}, "The driver runs on h (process 7)."),
        (
            Kind.STARTED,
            {"host": "h", "pid": 7, "application_id": "app-1", "ui": "http://h:4040"},
            "The driver runs on h (process 7): application app-1, Spark UI http://h:4040",
        ),
        (Kind.RESUMED, {"away": 1.5}, "The driver is connected again after 1.5 s."),
        (Kind.LOST, {}, "The broker has lost the driver's connection; waiting whether it comes back."),
        (Kind.SUCCEEDED, {"result": "secret"}, "succeeded"),
    ],
)
def test_a_line_of_the_log(kind, data, line):
    assert describe(Event(kind, JOB.job_id, JOB.source, 1, data)) == line


def test_a_line_is_short_and_one_whatever_somebody_sends():
    event = Event(Kind.PROGRESS, JOB.job_id, JOB.source, 1, {"fraction": 0.1, "text": "x\r\n" * 10_000})
    line = describe(event)
    assert len(line) < 600
    assert "\n" not in line
    assert "\r" not in line
