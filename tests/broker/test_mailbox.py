"""Airflow's side of a job's queues."""

from __future__ import annotations

import shlex
import threading
import time
import traceback
from dataclasses import replace

import pytest

from airflow_rabbitmq_spark.amqp.blocking import Operations
from airflow_rabbitmq_spark.amqp.endpoint import Endpoint
from airflow_rabbitmq_spark.amqp.publisher import Publisher
from airflow_rabbitmq_spark.exceptions import AccessRefused, BrokerUnreachable, ConnectionFailed, TopologyConflict
from airflow_rabbitmq_spark.job.events import Event, Kind, encode
from airflow_rabbitmq_spark.job.mailbox import Mailbox
from airflow_rabbitmq_spark.job.topology import Job, refused_exchange
from airflow_rabbitmq_spark.job.watch import Rules, Verdict
from stack.processes import free_port
from stack.proxy import Proxy
from tests.broker.drivers import Driver, alarm, declared, through

WAITING = """
with open_job() as job:
    say("runs")
    time.sleep(300)
"""

#: An interrupt does not end it, however soon it comes.
STUBBORN = """
with open_job() as job:
    while True:
        try: say("runs"); time.sleep(300)
        except KeyboardInterrupt: say("no")
"""


def soon(seconds: float = 60) -> Rules:
    return Rules(start_by=time.time() + seconds, lost_grace=0.0, end_by=time.time() + seconds)


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
def test_declaring_twice_is_declaring_once(broker, queue_type):
    endpoint = broker.endpoint(queue_type=queue_type)
    with declared(endpoint) as (job, mailbox, _):
        assert mailbox.exists(job)
        mailbox.declare(job)
        assert {job.job_queue, job.will_queue, refused_exchange(job.exchange)} <= broker.queues()
        mailbox.delete(job)
        mailbox.delete(job)
        assert not mailbox.exists(job)
        assert {job.job_queue, job.will_queue} & broker.queues() == set()


def test_who_may_not_declare_is_told_what_to_permit(broker, broker_endpoint):
    nobody = replace(broker_endpoint, username="nobody", exchange="my.events")
    job = Job.new("dag", "task", nobody.exchange)
    with Mailbox(nobody, connection_name="test") as mailbox:
        with pytest.raises(AccessRefused, match="The user may not declare what a job needs:") as caught:
            mailbox.declare(job)
        # The command in the message is enough, for all that a job needs; and no other is shown, in its traceback either.
        _, command = "".join(traceback.format_exception(caught.value)).split("rabbitmqctl")
        command = f"rabbitmqctl{command}"
        broker.ctl(*shlex.split(command)[1:])
        try:
            mailbox.declare(job)
            with Driver(job, nobody, "with open_job() as job: job.result(1)") as driver:
                assert driver.wait() == 0, driver.errors
                assert "Not delivered" not in driver.errors
            assert mailbox.wait(job, soon()).verdict is Verdict.SUCCEEDED
            mailbox.delete(job)
        finally:
            broker.ctl("set_permissions", "nobody", "", "", ".*")
            with Operations(broker_endpoint) as operations:
                operations.delete_queue(refused_exchange(job.exchange))
                operations.delete_exchange(refused_exchange(job.exchange))
                operations.delete_exchange(job.exchange)


def test_a_name_that_belongs_to_the_broker_is_not_a_matter_of_permissions(broker_endpoint):
    with Mailbox(broker_endpoint, connection_name="test") as mailbox:
        with pytest.raises(AccessRefused, match=r"Names that start with 'amq\.' belong to the broker") as caught:
            mailbox.declare(Job.new("dag", "task", "amq.topic"))
        assert "rabbitmqctl" not in str(caught.value)


def test_a_queue_of_another_kind_is_in_the_way(broker_endpoint):
    job = Job.new("dag", "task")
    with Operations(broker_endpoint) as operations, Mailbox(broker_endpoint, connection_name="test") as mailbox:
        operations.declare_queue(job.job_queue)
        with pytest.raises(TopologyConflict, match=job.job_queue):
            mailbox.declare(job)
        mailbox.delete(job)


def test_a_queue_of_refused_messages_that_was_made_otherwise_serves_as_well(broker_endpoint):
    endpoint = replace(broker_endpoint, exchange="made.otherwise")
    refused = refused_exchange(endpoint.exchange)
    with Operations(endpoint) as operations, Mailbox(endpoint, connection_name="test") as mailbox:
        operations.declare_queue(refused, arguments={"x-max-length": 5})
        job = Job.new("dag", "task", endpoint.exchange)
        mailbox.declare(job)
        assert mailbox.exists(job)
        mailbox.delete(job)
        operations.delete_queue(refused)


def test_no_broker():
    endpoint = Endpoint.from_uri(f"amqp://u:p@127.0.0.1:{free_port()}/")
    with pytest.raises(BrokerUnreachable), Mailbox(endpoint, connection_name="test"):
        raise AssertionError("not reached")


def test_the_fence_and_the_driver_exclude_each_other(broker_endpoint):
    with declared(broker_endpoint) as (job, mailbox, listener):
        with Driver(job, broker_endpoint, WAITING) as driver:
            driver.hear("runs")
            assert not mailbox.fence(job)
            driver.process.kill()
            listener.wait(Kind.LOST)
        assert mailbox.fence(job)
        assert mailbox.fence(job)
        with Driver(job, broker_endpoint, WAITING) as late:
            assert late.wait() == 1
            assert late.process.stdout.read() == ""
            assert "JobSuperseded" in late.errors
        assert listener.kinds == ["started", "lost"]


def test_a_cancel_that_nobody_can_hear(broker_endpoint):
    with declared(broker_endpoint) as (job, mailbox, _):
        assert not mailbox.cancel(job, "nobody is there")


@pytest.mark.parametrize("obeys", [True, False])
def test_to_stop_is_to_ask_first_and_then_to_kill(broker, broker_endpoint, obeys):
    with declared(broker_endpoint) as (job, mailbox, listener):
        with Driver(job, broker_endpoint, WAITING if obeys else STUBBORN) as driver:
            driver.hear("runs")
            killed = []
            mailbox.stop(job, "enough", grace=60 if obeys else 2, kill=lambda: killed.append(driver.process.kill()))
            assert bool(killed) is not obeys
            assert driver.wait() == (1 if obeys else -9)
        assert {job.job_queue, job.will_queue} & broker.queues() == set()
        assert ("cancelled" in listener.kinds) is obeys


def test_a_driver_whose_worker_a_shell_started_in_the_background_obeys_too(broker_endpoint):
    # Shells let what they start in the background ignore SIGINT, and that is inherited.
    code = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n" + WAITING
    with declared(broker_endpoint) as (job, mailbox, listener), Driver(job, broker_endpoint, code) as driver:
        driver.hear("runs")
        assert mailbox.cancel(job, "enough")
        assert driver.wait() == 1
        assert listener.wait(Kind.CANCELLED).data["reason"] == "enough"


def test_who_cannot_be_asked_because_of_an_alarm_is_killed(broker, broker_endpoint):
    with declared(broker_endpoint) as (job, mailbox, _), Driver(job, broker_endpoint, WAITING) as driver:
        driver.hear("runs")
        with alarm(broker):
            mailbox.stop(job, "enough", grace=60, kill=driver.process.kill)
            assert {job.job_queue, job.will_queue} & broker.queues() == set()
        assert driver.wait() == -9


@pytest.mark.parametrize(("asked", "way"), [(False, "refuse"), (False, "black_hole"), (True, "refuse")])
def test_to_stop_without_a_broker_is_to_kill(broker, broker_endpoint, asked, way):
    with (
        declared(broker_endpoint) as (job, _, listener),
        Driver(job, broker_endpoint, STUBBORN) as driver,
        Proxy(broker.port) as proxy,
        Mailbox(through(proxy, broker, heartbeat=1, connection_timeout=2), connection_name="test") as mailbox,
    ):
        driver.hear("runs")
        killed = []

        def kill() -> None:
            driver.process.kill()
            killed.append(True)

        def cut() -> None:
            if asked:
                driver.hear("no")
            getattr(proxy, way)()

        cutting = threading.Thread(target=cut)
        cutting.start()
        if not asked:
            cutting.join()
        with pytest.raises(ConnectionFailed):
            mailbox.stop(job, "enough", grace=5, kill=kill)
        cutting.join()
        assert killed == [True]
        assert driver.wait() == -9
        # Its queues are left to expire; whoever waits for it is told.
        listener.wait(Kind.LOST)
        assert {job.job_queue, job.will_queue} <= broker.queues()


def test_to_stop_what_has_not_started_is_to_kill(broker, broker_endpoint):
    with declared(broker_endpoint) as (job, mailbox, _):
        killed = []
        mailbox.stop(job, "enough", grace=60, kill=lambda: killed.append(True))
        assert killed == [True]
        assert job.job_queue not in broker.queues()


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
def test_the_deciding_event_stays_however_often_it_is_looked_at(broker, queue_type):
    # From RabbitMQ 4.0 on a quorum queue drops a message that was delivered 20 times, unless it is told not to.
    endpoint = broker.endpoint(queue_type=queue_type)
    with declared(endpoint) as (job, mailbox, _):
        with Driver(job, endpoint, "with open_job() as job: job.result('kept')") as driver:
            assert driver.wait() == 0, driver.errors
        seen = []
        for _ in range(30):
            outcome = mailbox.wait(job, soon(), seen.append)
            assert outcome.verdict is Verdict.SUCCEEDED
            assert outcome.event.data["result"] == "kept"
        assert [event.kind for event in seen] == [Kind.STARTED]


def test_what_is_no_event_goes_where_a_person_can_look(broker_endpoint):
    with declared(broker_endpoint) as (job, mailbox, _), Operations(broker_endpoint) as operations:
        refused = refused_exchange(job.exchange)
        operations.purge_queue(refused)
        other = encode(Event(Kind.SUCCEEDED, "f" * 32, "/airflow/x/y", data={"result": "wrong"}))
        asked = encode(Event(Kind.CANCEL, job.job_id, job.source))
        end = encode(Event(Kind.SUCCEEDED, job.job_id, job.source, data={"result": "right", "has_result": True}))
        with Publisher(broker_endpoint) as publisher:
            for body in (b"\xff", b"{}", b"[" * 3_000_000, other, asked, end):
                publisher.publish("", job.job_queue, body)
        assert mailbox.wait(job, soon()).event.data["result"] == "right"
        assert [operations.get(refused).body for _ in range(5)] == [b"\xff", b"{}", b"[" * 3_000_000, other, asked]
