"""The last will: said of every driver that dies, and of none that lives."""

from __future__ import annotations

import asyncio
import signal

import pika
import pytest

from airflow_rabbitmq_spark.amqp.connection import Connection
from airflow_rabbitmq_spark.amqp.publisher import Publisher
from airflow_rabbitmq_spark.exceptions import AccessRefused, NotFound
from airflow_rabbitmq_spark.job.events import Kind
from airflow_rabbitmq_spark.job.handover import Settings
from airflow_rabbitmq_spark.job.will import Will
from stack.proxy import Proxy
from tests.broker.drivers import Driver, declared, through

#: Says a line for each that it hears, and ends at `end`.
ECHO = """
with open_job() as job:
    say("runs")
    while (line := hear()) != "end":
        job.progress(text=line)
        say(line)
    job.result("done")
"""


@pytest.fixture
def quick(broker):
    return broker.endpoint(heartbeat=1)


def test_a_killed_driver_is_lost(broker, broker_endpoint):
    with declared(broker_endpoint) as (job, _, listener), Driver(job, broker_endpoint, ECHO) as driver:
        driver.hear("runs")
        listener.wait(Kind.STARTED)
        driver.send(signal.SIGKILL)
        lost = listener.wait(Kind.LOST)
        assert lost.data["text"].startswith("The driver's connection to the broker ended")
        assert lost.data["host"] == listener.wait(Kind.STARTED).data["host"]
        assert lost.sequence is None
        # When the broker gave it up is in the header that it adds.
        assert listener.headers[-1].headers["x-death"][0]["queue"] == job.will_queue
        assert listener.headers[-1].properties.message_id == lost.id
        assert listener.kinds == ["started", "lost"]


def test_a_stopped_driver_is_lost_and_comes_back(quick):
    with declared(quick) as (job, _, listener), Driver(job, quick, ECHO) as driver:
        driver.hear("runs")
        listener.wait(Kind.STARTED)
        driver.send(signal.SIGSTOP)
        listener.wait(Kind.LOST)
        driver.send(signal.SIGCONT)
        listener.wait(Kind.RESUMED)
        driver.say("end")
        assert driver.wait() == 0, driver.errors
        listener.wait(Kind.SUCCEEDED)
        assert listener.kinds == ["started", "lost", "resumed", "succeeded"]


@pytest.mark.parametrize("ending", ["end", "fail"])
def test_nobody_hears_of_a_driver_that_ended_by_itself(quick, ending):
    code = ECHO.replace("job.progress", "line == 'fail' and 1/0; job.progress")
    with declared(quick) as (job, _, listener):
        with Driver(job, quick, code) as driver:
            driver.hear("runs")
            driver.say(ending)
            driver.wait()
        listener.wait(Kind.SUCCEEDED if ending == "end" else Kind.FAILED)
        # What comes after it would have been said before this.
        with Publisher(quick) as publisher:
            last = listener.headers[0]
            last.properties.message_id = None
            body = last.body.replace(listener.events[0].id.encode(), b"the-last-of-all")
            publisher.publish(job.exchange, last.routing_key, body, last.properties)
        listener.wait(Kind.STARTED, count=2)
        assert Kind.LOST.value not in listener.kinds


def test_wills_are_renewed_a_thousand_times_without_a_false_word(broker_endpoint):
    async def hold(job) -> None:
        connection = await Connection.open(broker_endpoint)
        channel = await connection.channel()
        await channel.confirm()
        will = Will(job, channel, host="here")
        await will.claim()
        for _ in range(1_000):
            await will.lay()
        # So that the broker knows of the last renewal too.
        await channel.prefetch(0)
        connection.abort("the plug is pulled")
        await asyncio.wait([connection.closed])

    with declared(broker_endpoint) as (job, mailbox, listener):
        asyncio.run(hold(job))
        listener.wait(Kind.LOST)
        mailbox.delete(job)
        # One was held at any time after the first, and one only is told of.
        assert listener.kinds == ["lost"]


def test_only_one_can_claim_and_what_others_put_there_is_no_will(broker_endpoint):
    async def two(job) -> None:
        connections = [await Connection.open(broker_endpoint) for _ in range(2)]
        channels = [await connection.channel() for connection in connections]
        for channel in channels:
            await channel.confirm()
        first, second = (Will(job, channel, host="here") for channel in channels)
        await first.claim()
        with pytest.raises(AccessRefused):
            await second.claim()
        await channels[0].publish("", job.will_queue, b"not a will", pika.BasicProperties(message_id="theirs"))
        await first.lay()
        await first.release()
        late = Will(job, await connections[1].channel(), host="here")
        with pytest.raises(NotFound):
            await late.claim()
        for connection in connections:
            await connection.close()

    with declared(broker_endpoint) as (job, _, listener):
        asyncio.run(two(job))
        assert listener.kinds == []


@pytest.fixture
def short_delivery_timeout(broker):
    """Four seconds, looked at each second: far under the minute that RabbitMQ takes for the least."""
    assert broker.evaluate("element(2, application:get_env(rabbit, consumer_timeout))") == 1_800_000
    assert broker.evaluate("element(2, application:get_env(rabbit, channel_tick_interval))") == 60_000
    broker.set_option("consumer_timeout", 4000)
    broker.set_option("channel_tick_interval", 1000)
    yield
    broker.set_option("consumer_timeout", 1_800_000)
    broker.set_option("channel_tick_interval", 60_000)


@pytest.mark.usefixtures("short_delivery_timeout")
def test_a_will_is_renewed_before_the_delivery_timeout(broker_endpoint):
    with (
        declared(broker_endpoint) as (job, _, listener),
        declared(broker_endpoint) as (other, _, other_listener),
        Driver(job, broker_endpoint, ECHO, settings=Settings(will_renewal=1)) as renewing,
        Driver(other, broker_endpoint, ECHO, settings=Settings(will_renewal=600)) as holding,
    ):
        renewing.hear("runs")
        holding.hear("runs")
        # The timeout works: it costs one that holds its will for too long its channel, and it comes back by itself.
        for count in (1, 2):
            other_listener.wait(Kind.LOST, count=count)
            other_listener.wait(Kind.RESUMED, count=count)
        assert listener.kinds == ["started"]
        for driver in (renewing, holding):
            driver.say("end")
            assert driver.wait() == 0, driver.errors
        listener.wait(Kind.SUCCEEDED)
        other_listener.wait(Kind.SUCCEEDED)
        assert listener.kinds == ["started", "succeeded"]


CHATTY = """
import threading
with open_job() as job:
    ended = threading.Event()
    def chat():
        while not ended.is_set():
            for _ in range(10):
                job.progress(0.5)
            time.sleep(0.001)
    threading.Thread(target=chat, daemon=True).start()
    say("runs")
    hear()
    ended.set()
"""


@pytest.mark.usefixtures("short_delivery_timeout")
def test_who_reports_without_a_pause_renews_its_will_all_the_same(broker_endpoint):
    with (
        declared(broker_endpoint) as (job, _, listener),
        declared(broker_endpoint) as (other, _, other_listener),
        Driver(job, broker_endpoint, CHATTY, settings=Settings(will_renewal=1)) as chatty,
        Driver(other, broker_endpoint, ECHO, settings=Settings(will_renewal=600)) as holding,
    ):
        chatty.hear("runs")
        holding.hear("runs")
        # By now a will that was not renewed would have been missed, too.
        other_listener.wait(Kind.LOST, count=2)
        chatty.say("end")
        assert chatty.wait() == 0, chatty.errors
        assert "progress events shed before" in chatty.errors, "it had more to say all the time than goes out"
        listener.wait(Kind.SUCCEEDED)
        assert set(listener.kinds) == {"started", "progress", "succeeded"}
        holding.say("end")
        assert holding.wait() == 0, holding.errors


def test_a_line_that_swallows_everything(broker, quick):
    with Proxy(broker.port) as proxy, declared(quick) as (job, mailbox, listener):
        with Driver(job, through(proxy, broker, heartbeat=1, connection_timeout=2), ECHO) as driver:
            driver.hear("runs")
            listener.wait(Kind.STARTED)
            proxy.black_hole()
            driver.say("in the dark")
            driver.hear("in the dark")
            # The broker misses its heartbeats, and the driver misses the broker's.
            listener.wait(Kind.LOST)
            driver.logs("Not connected to Airflow's broker")
            assert not mailbox.cancel(job, "nobody can hear it")
            proxy.restore()
            listener.wait(Kind.RESUMED)
            driver.say("end")
            assert driver.wait() == 0, driver.errors
        listener.wait(Kind.SUCCEEDED)
        assert "in the dark" in [event.data.get("text") for event in listener.events]


def test_a_slow_line_is_no_dead_one(broker, quick):
    with Proxy(broker.port) as proxy, declared(quick) as (job, _, listener):
        proxy.slow(0.1)
        # Its wills cross the line in both directions, twenty times in all.
        with Driver(job, through(proxy, broker, heartbeat=2), ECHO, settings=Settings(will_renewal=0.1)) as driver:
            driver.hear("runs")
            for number in range(3):
                driver.say(str(number))
                driver.hear(str(number))
                listener.wait(Kind.PROGRESS, count=number + 1)
            driver.say("end")
            assert driver.wait() == 0, driver.errors
        listener.wait(Kind.SUCCEEDED)
        assert listener.kinds == ["started", *["progress"] * 3, "succeeded"]
        assert proxy.accepted == 1


def test_a_ghost_of_ones_own_is_outlived(broker, quick):
    # The broker does not know that the driver's old connection is gone, and refuses the new one until it does.
    with Proxy(broker.port) as proxy, declared(quick) as (job, _, listener):
        with Driver(job, through(proxy, broker, heartbeat=2), ECHO) as driver:
            driver.hear("runs")
            listener.wait(Kind.STARTED)
            for count in (1, 2):
                proxy.vanish()
                driver.say(f"alone {count}")
                driver.hear(f"alone {count}")
                driver.logs("Not connected to Airflow's broker")
                listener.wait(Kind.RESUMED, count=count)
            driver.say("end")
            assert driver.wait() == 0, driver.errors
        listener.wait(Kind.SUCCEEDED)
        assert [kind for kind in listener.kinds if kind != "progress"] == [
            "started",
            "lost",
            "resumed",
            "lost",
            "resumed",
            "succeeded",
        ]
        # It was refused for a while each time.
        assert proxy.accepted > 3
