"""``open_job()`` outside Airflow: the same object, and it only logs."""

from __future__ import annotations

import logging
import signal
import threading

import pytest

from airflow_rabbitmq_spark.exceptions import ConfigurationError, ResultInvalid
from airflow_rabbitmq_spark.job import JobSession, open_job
from airflow_rabbitmq_spark.job.events import MAX_RESULT_BYTES
from airflow_rabbitmq_spark.job.handover import VARIABLE


@pytest.fixture(autouse=True)
def _logs(caplog, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    caplog.set_level(logging.INFO, "airflow_rabbitmq_spark.job")


def test_it_logs_and_nothing_more(caplog):
    threads = threading.active_count()
    with open_job() as job:
        assert isinstance(job, JobSession)
        assert (job.job_id, job.cancelled) == (None, False)
        job.progress(0.334, "fold 1 of 3", accuracy=0.91, rows=10)
        job.progress()
        job.result({"accuracy": 0.97})
        assert threading.active_count() == threads
    assert job.finished.is_set()
    assert caplog.messages == [
        "Not started by Airflow: progress and result are only logged.",
        "33% fold 1 of 3 {'accuracy': 0.91, 'rows': 10}",
        " ",
        "result: {'accuracy': 0.97}",
    ]


def test_inside_another_it_is_that_one_again():
    with open_job() as job:
        with open_job() as inner:
            assert inner is job
        assert not job.finished.is_set()
        with open_job() as inner:
            assert inner is job
    with open_job() as another:
        assert another is not job


@pytest.mark.parametrize("error", [ValueError("x"), SystemExit(3), SystemExit(0), KeyboardInterrupt()])
def test_what_is_raised_inside_comes_out(error):
    with pytest.raises(type(error)) as caught, open_job():
        raise error
    assert caught.value is error


def test_signals_are_left_alone():
    before = signal.getsignal(signal.SIGTERM)
    with open_job():
        assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("fraction", "shown", "complaint"),
    [
        (0, "0%", None),
        (1, "100%", None),
        (1.0000001, "100%", "the fraction 1.0000001 is not between 0 and 1; it was clamped."),
        (-3, "0%", "the fraction -3 is not between 0 and 1; it was clamped."),
        (float("nan"), "", "fraction=nan is no finite number; it was left out."),
        ("half", "", "fraction='half' is no finite number; it was left out."),
        (10**400, "", "is no finite number; it was left out."),
    ],
)
def test_a_fraction(caplog, fraction, shown, complaint):
    with open_job() as job:
        job.progress(fraction)
        job.progress(fraction)
    assert [m for m in caplog.messages if m.startswith(f"{shown} ")]
    complaints = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    # Once: a training loop reports thousands of times.
    assert len(complaints) == (complaint is not None)
    assert complaint is None or complaints[0].endswith(complaint)


class Scalar:
    """Like NumPy's: a number that is no int and no float."""

    def __float__(self):
        return 0.25


class Evil:
    """Something a caller might pass by mistake."""

    def __float__(self):
        raise RuntimeError("no")

    def __repr__(self):
        raise RuntimeError("no")

    def __str__(self):
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("value", "number"),
    [(1, 1), (2**53, float(2**53)), (True, True), (0.5, 0.5), (Scalar(), 0.25), ("3", 3.0), (None, None), ([1], None)],
)
def test_metrics(caplog, value, number):
    with open_job() as job:
        job.progress(metric=value)
    assert str({"metric": number} if number is not None else "") in caplog.messages[-1] or number is None
    assert any("metric=" in m and "left out" in m for m in caplog.messages) == (number is None)


@pytest.mark.parametrize("arguments", [{"fraction": Evil()}, {"text": Evil()}, {"metric": Evil()}, {"text": "\ud800"}])
def test_progress_never_raises(arguments):
    with open_job() as job:
        job.progress(**arguments)


def test_a_result_that_cannot_be_an_xcom():
    with open_job() as job:
        with pytest.raises(ResultInvalid, match=r"has a builtins\.object"):
            job.result(object())
        with pytest.raises(ResultInvalid, match=f"the limit is {MAX_RESULT_BYTES:,}"):
            job.result("x" * MAX_RESULT_BYTES)
        job.result("the last one counts")


def test_a_handover_that_cannot_be_read(monkeypatch):
    monkeypatch.setenv(VARIABLE, "nonsense")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        open_job()
