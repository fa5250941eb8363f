"""What a job's queue says is read to its end, by whoever reads it next, and whoever held it before."""

from __future__ import annotations

import asyncio
import threading
import time

import pika
import pytest

from airflow_rabbitmq_spark.amqp.background import Background
from airflow_rabbitmq_spark.amqp.multiplexer import Multiplexer
from airflow_rabbitmq_spark.amqp.publisher import Publisher
from airflow_rabbitmq_spark.job.events import CONTENT_TYPE, Event, Kind, encode
from airflow_rabbitmq_spark.job.mailbox import Mailbox
from airflow_rabbitmq_spark.job.topology import Job
from airflow_rabbitmq_spark.job.watch import Rules, Verdict, Watch
from stack.proxy import Proxy
from tests.broker.drivers import eventually, through


@pytest.fixture
def mailbox(broker_endpoint):
    with Mailbox(broker_endpoint, connection_name="test") as mailbox:
        yield mailbox


@pytest.fixture
def job(broker_endpoint, mailbox):
    job = Job.new("dag", "task", broker_endpoint.exchange)
    mailbox.declare(job)
    yield job
    mailbox.delete(job)


@pytest.fixture
def say(broker_endpoint, job):
    """Publishes an event of the job, as its driver or the broker would."""
    with Publisher(broker_endpoint) as publisher:

        def say(kind, **data):
            event = Event(kind, job.job_id, job.source, data=data)
            properties = pika.BasicProperties(content_type=CONTENT_TYPE, message_id=event.id, delivery_mode=2)
            publisher.publish(job.exchange, job.routing_key(kind.value), encode(event), properties)
            return event

        yield say


def at_once():
    now = time.time()
    return Rules(start_by=now, lost_grace=0, end_by=now + 30)


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        ([], Verdict.PENDING),
        ([Kind.STARTED, Kind.PROGRESS], Verdict.PENDING),
        ([Kind.STARTED, Kind.LOST], Verdict.LOST),
        ([Kind.LOST, Kind.LOST], Verdict.LOST),
        ([Kind.LOST, Kind.RESUMED], Verdict.PENDING),
        ([Kind.LOST, Kind.RESUMED, Kind.LOST], Verdict.LOST),
        ([Kind.LOST, Kind.SUCCEEDED], Verdict.SUCCEEDED),
        ([Kind.LOST, Kind.RESUMED, Kind.FAILED], Verdict.FAILED),
        ([Kind.SUCCEEDED, Kind.LOST], Verdict.SUCCEEDED),
    ],
)
def test_what_the_queue_says(mailbox, job, say, said, verdict):
    for kind in said:
        say(kind)
    assert mailbox.look(job).verdict is verdict
    # To look changes nothing: whoever comes next sees the same.
    assert mailbox.look(job).verdict is verdict


def test_a_wait_reads_past_a_lost_whose_grace_is_over(mailbox, job, say):
    say(Kind.LOST)
    say(Kind.SUCCEEDED, result=7)
    outcome = mailbox.wait(job, at_once())
    assert (outcome.verdict, outcome.event.data["result"]) == (Verdict.SUCCEEDED, 7)


def test_a_broker_that_restarts_many_times_does_not_fill_the_prefetch(mailbox, job, say):
    for _ in range(40):
        say(Kind.LOST)
    say(Kind.SUCCEEDED)
    rules = Rules(start_by=time.time(), lost_grace=20, end_by=time.time() + 30)
    assert mailbox.wait(job, rules).verdict is Verdict.SUCCEEDED
    assert mailbox.look(job).verdict is Verdict.SUCCEEDED


@pytest.mark.parametrize(("grace", "verdict"), [(60, Verdict.SUCCEEDED), (1, Verdict.NEVER_STARTED)])
def test_a_driver_may_connect_again_where_the_broker_was_away_at_start_timeout(
    broker, job, say, monkeypatch, *, grace, verdict
):
    """Its first word could not come, and who waits may be back before the driver is."""
    monkeypatch.setattr("airflow_rabbitmq_spark.job.watch.LOOK_AGAIN", 0.5)
    monkeypatch.setattr("airflow_rabbitmq_spark.amqp.multiplexer.RETRY_DELAY", (0.1, 0.2))
    looks = []

    async def story(proxy):
        multiplexer = Multiplexer(through(proxy, broker))
        async with multiplexer.subscribe(job.job_queue) as subscription:
            await asyncio.to_thread(eventually, lambda: subscription.consumer is not None)
            assert multiplexer.back_since is None
            proxy.refuse()
            watch = Watch(multiplexer, job, Rules(start_by=time.time(), lost_grace=grace, end_by=time.time() + 60))
            overdue = watch._overdue

            async def counted(start_by):
                looks.append(multiplexer.back_since)
                return await overdue(start_by)

            monkeypatch.setattr(watch, "_overdue", counted)
            waiting = asyncio.ensure_future(watch.outcome(subscription))
            await asyncio.to_thread(eventually, lambda: len(looks) > 1)
            assert looks[-1] is None
            proxy.restore()
            # It looks with the broker there, twice, or has given up.
            await asyncio.to_thread(eventually, lambda: waiting.done() or None not in looks[-2:])
            if grace == 60:
                assert not waiting.done()
                await asyncio.to_thread(say, Kind.SUCCEEDED)
            return (await waiting).verdict

    with Proxy(broker.port) as proxy:
        assert asyncio.run(story(proxy)) is verdict


def test_a_queue_that_is_gone(mailbox, job):
    mailbox.delete(job)
    assert mailbox.look(job).verdict is Verdict.VANISHED


def test_what_another_reader_holds_is_waited_for(broker_endpoint, mailbox, job, say):
    """As a worker that resumes does while the trigger still holds the event, and after a triggerer was stopped."""
    say(Kind.LOST)
    say(Kind.SUCCEEDED)
    read, let_go = threading.Event(), threading.Event()

    async def hold():
        multiplexer = Multiplexer(broker_endpoint)
        async with multiplexer.subscribe(job.job_queue) as subscription:
            watch = Watch(multiplexer, job, Rules(start_by=time.time() + 60, lost_grace=60))
            assert (await watch.outcome(subscription)).verdict is Verdict.SUCCEEDED
            read.set()
            await asyncio.to_thread(let_go.wait, 30)

    background = Background("holder")
    try:
        holding = asyncio.run_coroutine_threadsafe(hold(), background.loop)
        assert read.wait(20)
        looks = []
        looking = threading.Thread(target=lambda: looks.append(mailbox.look(job)))
        looking.start()
        # More than the looks that an empty queue without another reader takes.
        looking.join(timeout=2)
        assert looking.is_alive()
        let_go.set()
        looking.join(timeout=30)
        assert looks[0].verdict is Verdict.SUCCEEDED
        holding.result(30)
    finally:
        background.stop()


def test_a_tag_from_before_a_reconnect_settles_nothing(broker, broker_endpoint, job, say):
    """Delivery tags begin anew on every connection; the first one's must not acknowledge the second one's message."""
    say(Kind.LOST)

    async def story(proxied, cut):
        multiplexer = Multiplexer(proxied)
        async with multiplexer.subscribe(job.job_queue) as subscription:
            before = await asyncio.wait_for(subscription.next(), 20)
            cut()
            again = await asyncio.wait_for(subscription.next(), 60)
            assert (again.tag, again.properties.message_id) == (before.tag, before.properties.message_id)
            subscription.ack(before)
            await asyncio.sleep(0.2)

    with Proxy(broker.port) as proxy:
        proxied = type(broker_endpoint).from_uri(
            broker.uri().replace(f":{broker.port}/", f":{proxy.port}/"), ca_certificate=broker.ca_pem
        )
        asyncio.run(story(proxied, proxy.cut))
    with Mailbox(broker_endpoint, connection_name="test") as mailbox:
        assert mailbox.look(job).verdict is Verdict.LOST


def test_a_fence_is_one_or_the_other(broker_endpoint, mailbox, job):
    """The will queue is the token: deleted only while nobody consumes it."""

    async def consume():
        multiplexer = Multiplexer(broker_endpoint)
        async with multiplexer.subscribe(job.will_queue) as subscription:
            async with asyncio.timeout(20):
                while subscription.consumer is None:  # noqa: ASYNC110 - set where nobody else has to be woken
                    await asyncio.sleep(0.01)
            return await asyncio.to_thread(mailbox.fence, job)

    assert asyncio.run(consume()) is False
    assert mailbox.fence(job) is True
    assert mailbox.fence(job) is True
