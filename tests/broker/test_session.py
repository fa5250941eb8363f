"""Drivers in processes of their own: what is heard of each way to run and to end."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time

import pytest

from airflow_rabbitmq_spark.amqp.blocking import Operations
from airflow_rabbitmq_spark.amqp.endpoint import Endpoint
from airflow_rabbitmq_spark.job.events import CONTENT_TYPE, Kind
from airflow_rabbitmq_spark.job.handover import Settings
from airflow_rabbitmq_spark.job.topology import Job
from airflow_rabbitmq_spark.job.watch import Rules, Verdict
from stack.processes import free_port
from stack.proxy import Proxy
from tests.broker.drivers import PATIENCE, Driver, alarm, declared, eventually, through

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def quick(broker) -> Endpoint:
    """Heartbeats of one second: what takes a few of them is soon over."""
    return broker.endpoint(heartbeat=1)


@pytest.mark.parametrize("python", ["airflow", "spark"])
def test_a_run_from_its_start_to_its_result(broker, quick, bundle, python):
    with declared(quick) as (job, _, listener):
        code = """
with open_job() as job:
    job.progress(0.5, "half", loss=0.25)
    job.progress(1, accuracy=0.97)
    job.result({"accuracy": 0.97, "ümlaut": [None, True]})
    say(job.job_id)
"""
        with Driver(job, quick, code, bundle=bundle if python == "spark" else None, traceparent=TRACEPARENT) as driver:
            driver.hear(job.job_id)
            assert driver.wait() == 0, driver.errors
        end = listener.wait(Kind.SUCCEEDED)
        assert listener.kinds == ["started", "progress", "progress", "succeeded"]
        assert [event.sequence for event in listener.events] == [1, 2, 3, 4]
        assert {event.traceparent for event in listener.events} == {TRACEPARENT}
        assert {(event.subject, event.source) for event in listener.events} == {(job.job_id, "/airflow/dag/task")}
        started, half, whole, _ = listener.events
        assert started.data["pid"] == driver.process.pid
        assert {"host", "python", "version"} < set(started.data)
        assert half.data == {"fraction": 0.5, "text": "half", "metrics": {"loss": 0.25}}
        assert whole.data == {"fraction": 1, "text": None, "metrics": {"accuracy": 0.97}}
        assert end.data["result"] == {"accuracy": 0.97, "ümlaut": [None, True]}
        assert (end.data["has_result"], end.data["duration"] >= 0) == (True, True)
        for event, message in zip(listener.events, listener.headers, strict=True):
            said = message.properties
            assert (said.content_type, said.message_id, said.correlation_id) == (CONTENT_TYPE, event.id, job.job_id)
            assert (said.delivery_mode, said.type) == (2, event.kind.value)
            assert message.routing_key == job.routing_key(event.kind.value)

        # A clean end leaves no place for another driver, and nothing of the driver's own.
        def left() -> set[str]:
            return {name for name in broker.queues() if name.startswith("airflow.spark.") and job.job_id in name}

        eventually(lambda: left() == {job.job_queue})


@pytest.mark.parametrize(
    ("body", "code", "kind", "data"),
    [
        ("pass", 0, Kind.SUCCEEDED, {"result": None, "has_result": False}),
        ("job.result(None)", 0, Kind.SUCCEEDED, {"result": None, "has_result": True}),
        ("sys.exit(0)", 0, Kind.SUCCEEDED, {}),
        ("job.result(1); sys.exit()", 0, Kind.SUCCEEDED, {"result": 1}),
        ("sys.exit(3)", 3, Kind.FAILED, {"type": "SystemExit", "message": "exited with code 3", "exit_code": 3}),
        ("sys.exit('no data')", 1, Kind.FAILED, {"message": "exited with no data", "exit_code": 1}),
        ("1/0", 1, Kind.FAILED, {"type": "ZeroDivisionError", "message": "division by zero"}),
        ("raise ValueError('\\ud800')", 1, Kind.FAILED, {"type": "ValueError", "message": "?"}),
        (
            "raise type('E', (Exception,), {'__str__': lambda self: 1 / 0})",
            1,
            Kind.FAILED,
            {"type": "E", "message": "(no text: its __str__ raised ZeroDivisionError)"},
        ),
        ("raise KeyboardInterrupt", -signal.SIGINT, Kind.FAILED, {"type": "KeyboardInterrupt"}),
        ("job.result(object())", 1, Kind.FAILED, {"type": "ResultInvalid"}),
        ("job.result('x' * 100)", 1, Kind.FAILED, {"type": "ResultInvalid"}),
        ("os.kill(os.getpid(), 15); time.sleep(60)", 143, Kind.FAILED, {"type": "SIGTERM", "exit_code": 143}),
        ("os.kill(os.getpid(), 2); time.sleep(60)", -signal.SIGINT, Kind.FAILED, {"type": "KeyboardInterrupt"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_way_to_end(quick, body, code, kind, data):
    with declared(quick) as (job, _, listener):
        with Driver(
            job, quick, f"with open_job() as job:\n    {body}\n", settings=Settings(max_result_bytes=50)
        ) as driver:
            assert driver.wait() == code, driver.errors
        end = listener.wait(kind)
        assert listener.kinds == ["started", kind.value]
        assert {name: end.data[name] for name in data} == data
        if kind is Kind.FAILED:
            assert end.data["traceback"].startswith("Traceback (most recent call last)")
            assert 'File "<string>", line ' in end.data["traceback"]


def test_an_unmodified_application_is_told_of_without_the_launchers_frames(quick, bundle):
    with declared(quick) as (job, _, listener):
        with Driver(job, quick, "def train():\n    raise OSError('no such table')\ntrain()\n", bundle=bundle) as driver:
            assert driver.wait() == 1
            assert "OSError: no such table" in driver.errors
        text = listener.wait(Kind.FAILED).data["traceback"]
        assert text.splitlines()[1].startswith(f'  File "{bundle.parent}/{job.job_id}.py"')
        assert "runpy" not in text
        assert text.splitlines()[-1] == "OSError: no such table"


def test_a_result_that_is_changed_later_is_the_one_that_was_given(quick):
    code = """
with open_job() as job:
    result = {"a": 1}
    job.result(result)
    result["a"] = object()
"""
    with declared(quick) as (job, _, listener):
        with Driver(job, quick, code) as driver:
            assert driver.wait() == 0, driver.errors
        assert listener.wait(Kind.SUCCEEDED).data["result"] == {"a": 1}


def test_a_cancel_is_heard_and_obeyed(broker, quick):
    code = """
with open_job() as job:
    try:
        say("runs")
        time.sleep(300)
    finally:
        say(f"cleans up, cancelled={job.cancelled}")
"""
    with declared(quick) as (job, mailbox, listener):
        with Driver(job, quick, code) as driver:
            driver.hear("runs")
            assert mailbox.cancel(job, "somebody pressed the button")
            driver.hear("cleans up, cancelled=True")
            assert driver.wait() == 1
            assert "JobCancelled: Stopped: somebody pressed the button" in driver.errors
        assert listener.wait(Kind.CANCELLED).data["reason"] == "somebody pressed the button"
        assert listener.kinds == ["started", "cancelled"]
        assert job.will_queue not in broker.queues()
        assert not mailbox.cancel(job, "again")


@pytest.mark.parametrize(("body", "kind"), [("job.result('enough')", Kind.SUCCEEDED), ("pass", Kind.CANCELLED)])
def test_one_that_looks_for_a_cancel_ends_its_own_way(quick, body, kind):
    code = f"""
with open_job() as job:
    while not job.cancelled:
        try: say("runs"); time.sleep(300)
        except KeyboardInterrupt: pass
    {body}
"""
    with declared(quick) as (job, mailbox, listener):
        with Driver(job, quick, code) as driver:
            driver.hear("runs")
            mailbox.cancel(job, "enough")
            assert driver.wait() == 0, driver.errors
        listener.wait(kind)


def test_a_cancel_is_no_business_of_others(quick):
    # Not JSON, another job's, another kind: each is looked at and let go.
    code = "with open_job() as job:\n    say('runs')\n    hear()\n    job.result(job.cancelled)\n"
    with declared(quick) as (job, mailbox, listener), declared(quick) as (_, _, _):
        with Driver(job, quick, code) as driver:
            driver.hear("runs")
            other = Job("dag", "task", "f" * 32, job.exchange)
            misled = type("Misled", (), {"control_queue": job.control_queue, "job_id": other.job_id, "source": "/x"})
            assert mailbox.cancel(misled, "of another job")
            driver.say()
            assert driver.wait() == 0, driver.errors
        assert listener.wait(Kind.SUCCEEDED).data["result"] is False


def test_a_second_driver_is_refused_before_it_begins(quick):
    code = "with open_job() as job:\n    say('runs')\n    hear()\n    job.result('first')\n"
    with declared(quick) as (job, _, listener):
        with Driver(job, quick, code) as first:
            first.hear("runs")
            with Driver(job, quick, code) as second:
                assert second.wait() == 1
                assert second.process.stdout.read() == ""
                assert f"JobSuperseded: Job {job.job_id} has another driver" in second.errors
            first.say()
            assert first.wait() == 0, first.errors
        assert listener.wait(Kind.SUCCEEDED).data["result"] == "first"
        assert listener.kinds == ["started", "succeeded"]


def test_a_driver_that_was_given_up_does_not_begin(quick):
    with declared(quick) as (job, mailbox, listener):
        mailbox.delete(job)
        with Driver(job, quick, "with open_job() as job:\n    say('runs')\n") as driver:
            assert driver.wait() == 1
            assert driver.process.stdout.read() == ""
            assert f"JobSuperseded: Job {job.job_id} of dag.task was given up by Airflow" in driver.errors
        assert listener.kinds == []


def test_a_driver_that_is_given_up_stops(quick):
    code = "with open_job() as job:\n    say('runs')\n    time.sleep(300)\n"
    with declared(quick) as (job, mailbox, listener):
        with Driver(job, quick, code) as driver:
            driver.hear("runs")
            mailbox.delete(job)
            assert driver.wait() == 1
            assert f"JobSuperseded: Job {job.job_id} of dag.task was given up by Airflow" in driver.errors
        assert listener.kinds == ["started"]


def test_no_broker_from_the_start_to_the_end():
    endpoint = Endpoint.from_uri(f"amqp://u:canary-77aa@127.0.0.1:{free_port()}/")
    code = "with open_job() as job:\n    job.progress(0.5)\n    job.result(1)\n    say('ran')\n"
    with Driver(Job.new("dag", "task"), endpoint, code, settings=Settings(delivery_timeout=1)) as driver:
        driver.hear("ran")
        assert driver.wait() == 0, driver.errors
        assert "the job runs on, and this is tried again" in driver.errors
        assert (
            "Not delivered to Airflow: 1 started, 1 progress, 1 succeeded; progress events shed before: 0. Reason: "
        ) in driver.errors
        assert "Airflow will take this job for lost or never started." in driver.errors
        assert "canary-77aa" not in driver.errors


def test_the_broker_is_away_in_the_middle(broker):
    code = """
with open_job() as job:
    for line in sys.stdin:
        job.progress(text=line.strip())
        say(line.strip())
        if line == "last\\n": break
"""
    with Proxy(broker.port) as proxy:
        endpoint = through(proxy, broker, heartbeat=1)
        with declared(broker.endpoint()) as (job, _, listener):
            with Driver(job, endpoint, code) as driver:
                for text in ("one", "two"):
                    driver.say(text)
                    driver.hear(text)
                listener.wait(Kind.PROGRESS, count=2)
                proxy.refuse()
                listener.wait(Kind.LOST)
                driver.say("three")
                driver.hear("three")
                driver.logs("Not connected to Airflow's broker; the job runs on")
                proxy.restore()
                listener.wait(Kind.RESUMED)
                driver.say("last")
                assert driver.wait() == 0, driver.errors
                assert "Not delivered" not in driver.errors
            listener.wait(Kind.SUCCEEDED)
        assert listener.kinds == [
            "started",
            "progress",
            "progress",
            "lost",
            "resumed",
            "progress",
            "progress",
            "succeeded",
        ]
        said = [event for event in listener.events if event.kind is not Kind.LOST]
        assert [event.data.get("text") for event in said if event.kind is Kind.PROGRESS] == [
            "one",
            "two",
            "three",
            "last",
        ]
        assert listener.wait(Kind.RESUMED).data["away"] >= 0
        assert [event.sequence for event in said] == list(range(1, 8))


def test_only_what_was_sent_comes_before_resumed_and_nothing_after_the_last_word(broker):
    """What was sent and is not confirmed has its number, and may have been heard."""
    # What was said first is heard here before its confirm is there.
    code = """
with open_job() as job:
    while job._link._outbox or not job._link._report.delivered: time.sleep(0.05)
    say("runs")
    if hear() == "progress":
        job.progress(text="one")
        job.progress(text="two")
"""
    cases = {
        ("sent", "progress"): ["started", "one", "resumed", "two", "succeeded"],
        ("sent", "last word"): ["started", "succeeded"],
        ("not sent", "progress"): ["started", "resumed", "one", "two", "succeeded"],
        ("not sent", "last word"): ["started", "resumed", "succeeded"],
    }
    with Proxy(broker.port) as proxy, contextlib.ExitStack() as stack:
        endpoint = through(proxy, broker, heartbeat=2, connection_timeout=2)
        listeners, drivers = {}, {}
        for case in cases:
            job, _, listeners[case] = stack.enter_context(declared(broker.endpoint()))
            drivers[case] = Driver(job, endpoint, code, settings=Settings(delivery_timeout=PATIENCE))
            stack.enter_context(drivers[case])
        for driver in drivers.values():
            driver.hear("runs")
        # What is written from now on goes nowhere, and nobody notices for two heartbeats.
        proxy.black_hole()
        for case in ("sent", "progress"), ("sent", "last word"):
            drivers[case].say(case[1])
        for case, driver in drivers.items():
            listeners[case].wait(Kind.LOST)
            driver.logs("Not connected to Airflow's broker")
        for case in ("not sent", "progress"), ("not sent", "last word"):
            drivers[case].say(case[1])
        proxy.restore()
        heard = {}
        for case, driver in drivers.items():
            assert driver.wait() == 0, driver.errors
            listeners[case].wait(Kind.SUCCEEDED)
            said = [event for event in listeners[case].events if event.kind is not Kind.LOST]
            assert [event.sequence for event in said] == list(range(1, len(said) + 1)), case
            heard[case] = [event.data.get("text") or event.kind.value for event in said]
        assert heard == cases


def test_progress_is_shed_before_it_blocks_and_the_end_never_is(broker):
    code = """
with open_job() as job:
    say("runs"); hear()
    for i in range(500): job.progress(i / 500, str(i))
    say("reported"); hear()
    job.result("all of it")
"""
    with Proxy(broker.port) as proxy:
        endpoint = through(proxy, broker, heartbeat=1)
        with declared(broker.endpoint()) as (job, _, listener):
            with Driver(job, endpoint, code) as driver:
                driver.hear("runs")
                listener.wait(Kind.STARTED)
                proxy.refuse()
                driver.logs("Not connected to Airflow's broker")
                driver.say()
                driver.hear("reported")
                proxy.restore()
                driver.say()
                assert driver.wait() == 0, driver.errors
                assert "Not delivered to Airflow: nothing else; progress events shed before: 400." in driver.errors
                assert "Its end was delivered." in driver.errors
            assert listener.wait(Kind.SUCCEEDED).data["result"] == "all of it"
        told = [int(event.data["text"]) for event in listener.events if event.kind is Kind.PROGRESS]
        # Never the first of all, which may be on its way; otherwise the newest.
        assert told == [0, *range(401, 500)]
        # The gaps in the numbers are what was shed.
        numbers = [event.sequence for event in listener.events if event.kind is not Kind.LOST]
        assert numbers == sorted(numbers)
        assert numbers[-1] - len(numbers) == 400


def test_an_alarm_on_the_broker_blocks_nothing_of_the_job(broker):
    # A will that cannot be laid, and publishers that are blocked, are given up after two seconds: were it so here.
    endpoint = broker.endpoint(heartbeat=1, blocked_connection_timeout=2)
    code = """
from airflow_rabbitmq_spark.job import will
will.LAY_TIMEOUT = 2
with open_job() as job:
    say("runs"); hear()
    for i in range(10): job.progress(i / 10)
    say("reported")
    job.result("kept")
"""
    with declared(endpoint) as (job, _, listener):
        with Driver(job, endpoint, code, settings=Settings(will_renewal=1)) as driver:
            driver.hear("runs")
            listener.wait(Kind.STARTED)
            with alarm(broker):
                driver.logs("blocks publishers: memory or disk alarm")
                # Longer than three heartbeats and several renewals: the connection has to live on, while nothing is
                # said as while something is, and while the last word is waiting.
                time.sleep(4)
                driver.say()
                driver.hear("reported")
                with pytest.raises(subprocess.TimeoutExpired):
                    driver.process.wait(4)
            assert driver.wait() == 0, driver.errors
        assert listener.wait(Kind.SUCCEEDED).data["result"] == "kept"
        assert listener.kinds == ["started", *["progress"] * 10, "succeeded"]


def test_an_alarm_at_the_start(broker, quick):
    code = "with open_job() as job:\n    say('runs')\n    job.result(hear())\n"
    with declared(quick) as (job, _, listener), alarm(broker) as over, Driver(job, quick, code) as driver:
        driver.hear("runs")
        over()
        driver.say("all the same")
        assert driver.wait() == 0, driver.errors
        assert listener.wait(Kind.SUCCEEDED).data["result"] == "all the same"
        assert listener.kinds == ["started", "succeeded"]


def test_an_alarm_that_does_not_end_is_said(broker, quick):
    code = "with open_job() as job:\n    say('runs')\n    hear()\n"
    with (
        declared(quick) as (job, _, listener),
        Driver(job, quick, code, settings=Settings(delivery_timeout=1)) as driver,
    ):
        driver.hear("runs")
        listener.wait(Kind.STARTED)
        with alarm(broker):
            driver.say()
            assert driver.wait() == 0, driver.errors
            assert "Not delivered to Airflow: 1 succeeded;" in driver.errors
        # Nobody heard how it ended, but everybody that it did.
        listener.wait(Kind.LOST)


def test_somebody_elses_full_queue_holds_up_no_job(broker_endpoint):
    # A broker refuses a message when any queue does that it goes to, and this one is bound to all events.
    code = "with open_job() as job:\n    for n in range(20): job.progress(n / 20)\n    job.result('heard')\n"
    with declared(broker_endpoint) as (job, mailbox, listener), Operations(broker_endpoint) as operations:
        operations.declare_queue("test-full", arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
        try:
            operations.bind_queue("test-full", job.exchange, "#")
            with Driver(job, broker_endpoint, code, settings=Settings(delivery_timeout=PATIENCE)) as driver:
                assert listener.wait(Kind.SUCCEEDED).data["result"] == "heard"
                operations.delete_queue("test-full")
                assert driver.wait() == 0, driver.errors
        finally:
            operations.delete_queue("test-full")
        assert mailbox.wait(job, Rules(start_by=0, end_by=time.time() + PATIENCE)).verdict is Verdict.SUCCEEDED
