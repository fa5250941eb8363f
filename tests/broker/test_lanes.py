"""What the broker refuses to one wait costs no other: each channel's consumers stand apart from the rest."""

from __future__ import annotations

import asyncio
import uuid

import pika
import pytest

from airflow_rabbitmq_spark.amqp.connection import Connection
from airflow_rabbitmq_spark.amqp.multiplexer import LANES, Multiplexer
from airflow_rabbitmq_spark.exceptions import AccessRefused
from tests.broker.drivers import eventually

PATIENCE = 30.0
#: Several for each channel.
MANY = 5 * LANES


class Bench:
    """Queues of one connection that also publishes to them, and a multiplexer that consumes them on its own."""

    def __init__(self, endpoint) -> None:
        self.endpoint = endpoint
        self.names = [f"lanes-{uuid.uuid4().hex}" for _ in range(MANY)]
        self.multiplexer = Multiplexer(endpoint)

    async def __aenter__(self):
        self.connection = await Connection.open(self.endpoint)
        self.channel = await self.connection.channel()
        for name in self.names:
            await self.channel.declare_queue(name, exclusive=False)
        self.subscriptions = [self.multiplexer.subscribe(name) for name in self.names]
        for subscription in self.subscriptions:
            await subscription.__aenter__()
        return self

    async def __aexit__(self, *_):
        for subscription in self.subscriptions:
            await subscription.__aexit__(None, None, None)
        for name in self.names:
            await self.channel.delete_queue(name)
        await self.connection.close()

    def publish(self, body):
        for name in self.names:
            self.channel.send("", name, body, pika.BasicProperties())

    async def receive(self, body, *, redelivered=False):
        for subscription in self.subscriptions:
            message = await subscription.next(PATIENCE)
            assert (message.body, message.redelivered) == (body, redelivered)
            subscription.ack(message)

    def lanes(self):
        return {subscription.consumer.lane for subscription in self.subscriptions if subscription.consumer}


def test_a_queue_that_is_anothers_alone_ends_its_own_wait_only(broker_endpoint):
    async def story():
        async with Bench(broker_endpoint) as bench:
            name = f"lanes-{uuid.uuid4().hex}"
            await bench.channel.declare_queue(name)
            await bench.channel.consume(name, print, exclusive=True)
            for _ in range(LANES):
                async with bench.multiplexer.subscribe(name) as refused:
                    with pytest.raises(AccessRefused, match="for itself"):
                        await refused.next(PATIENCE)
            bench.publish(b"1")
            await bench.receive(b"1")
            assert bench.multiplexer.connections_opened == 1
            await bench.channel.delete_queue(name)

    asyncio.run(story())


def test_a_channel_that_nobody_waits_for_any_more_is_closed(broker, broker_endpoint):
    async def story():
        connection = await Connection.open(broker_endpoint, connection_name="late-channel")
        opening = asyncio.ensure_future(connection.channel())
        await asyncio.sleep(0)  # the request is sent
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        await connection.channel()

        def one() -> bool:
            return [c["channels"] for c in broker.connections() if c.get("connection_name") == "late-channel"] == [1]

        await asyncio.to_thread(eventually, one)
        await connection.close()

    asyncio.run(story())


def test_a_channel_that_the_broker_closes_takes_its_own_consumers_along_and_they_come_back(broker_endpoint):
    async def story():
        async with Bench(broker_endpoint) as bench:
            bench.publish(b"1")
            await bench.receive(b"1")
            bench.publish(b"2")
            held = await bench.subscriptions[0].next(PATIENCE)
            lane = bench.subscriptions[0].consumer.lane
            assert len(bench.lanes()) > 1
            # As the delivery timeout does: the channel is closed, and what it held goes back.
            lane.channel.ack(999_999)
            again = await bench.subscriptions[0].next(PATIENCE)
            assert not bench.subscriptions[0].holds(held)
            assert (again.body, again.redelivered) == (b"2", True)
            bench.subscriptions[0].ack(again)
            for subscription in bench.subscriptions[1:]:
                message = await subscription.next(PATIENCE)
                assert message.body == b"2"
                subscription.ack(message)
            assert lane not in bench.lanes()
            assert bench.multiplexer.connections_opened == 1

    asyncio.run(story())


def test_many_that_end_at_once_give_back_what_they_hold(broker_endpoint):
    async def story():
        async with Bench(broker_endpoint) as bench:
            bench.publish(b"1")
            for subscription in bench.subscriptions:
                await subscription.next(PATIENCE)
            async with asyncio.timeout(PATIENCE):
                await asyncio.gather(*(subscription.end_consumer() for subscription in bench.subscriptions))
            assert {await bench.channel.declare_queue(name, passive=True) for name in bench.names} == {(1, 0)}

    asyncio.run(story())


def test_a_deadline_passes_and_the_wait_goes_on(broker_endpoint):
    async def story():
        async with Bench(broker_endpoint) as bench:
            subscription = bench.subscriptions[0]
            with pytest.raises(TimeoutError):
                await subscription.next(0.05)
            with pytest.raises(TimeoutError):
                await subscription.next(-1.0)
            bench.publish(b"1")
            await bench.receive(b"1")

    asyncio.run(story())
