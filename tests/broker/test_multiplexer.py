"""Many waits on one connection, and what becomes of them when it breaks."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import uuid

import pytest

from airflow_rabbitmq_spark.amqp.blocking import Operations
from airflow_rabbitmq_spark.amqp.endpoint import Endpoint
from airflow_rabbitmq_spark.amqp.multiplexer import Multiplexer, shared
from airflow_rabbitmq_spark.amqp.publisher import Outgoing, Publisher
from airflow_rabbitmq_spark.amqp.subscription import Lane
from airflow_rabbitmq_spark.exceptions import AuthenticationFailed, BrokerUnreachable, NotFound, RabbitMQSparkError
from stack.processes import free_port
from stack.proxy import Proxy
from tests.broker.drivers import PATIENCE, alarm, eventually, through

MANY = 300


class Queues:
    """Some queues, and a blocking side that publishes to them."""

    def __init__(self, endpoint: Endpoint, count: int) -> None:
        self.endpoint = endpoint
        prefix = f"test-{uuid.uuid4().hex}"
        self.names = [f"{prefix}-{number}" for number in range(count)]
        with Operations(endpoint) as operations:
            for name in self.names:
                operations.declare_queue(name)

    def publish(self, *bodies: bytes) -> None:
        with Publisher(self.endpoint) as publisher:
            publisher.publish_many(Outgoing(body, name) for name in self.names for body in bodies)

    def delete(self, *names: str) -> None:
        with Operations(self.endpoint) as operations:
            for name in names or self.names:
                operations.delete_queue(name)


@pytest.fixture
def queues(broker_endpoint):
    made = Queues(broker_endpoint, MANY)
    yield made
    made.delete()


@pytest.fixture
def one(broker_endpoint):
    made = Queues(broker_endpoint, 1)
    yield made.names[0]
    made.delete()


async def patiently(awaitable):
    return await asyncio.wait_for(awaitable, PATIENCE)


async def in_thread(function, *arguments):
    return await patiently(asyncio.to_thread(function, *arguments))


@contextlib.asynccontextmanager
async def subscribed(multiplexer, names):
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(multiplexer.subscribe(name)) for name in names]


async def until(true) -> None:
    """Wait until something is so that nobody tells of."""
    async with asyncio.timeout(PATIENCE):
        while not (await true() if inspect.iscoroutinefunction(true) else true()):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def consuming(multiplexer, *names) -> None:
    """Wait until each queue has its consumer."""

    async def all_are() -> bool:
        counts = [await multiplexer.inspect(name) for name in names]
        return all(count is not None and count[1] == 1 for count in counts)

    await until(all_are)


async def all_of(subscriptions, body: bytes) -> None:
    """Wait until every one has got and acknowledged `body`; a message that comes again is acknowledged again."""

    async def receive(subscription) -> None:
        while True:
            message = await subscription.next()
            subscription.ack(message)
            if message.body == body:
                return

    await patiently(asyncio.gather(*(receive(subscription) for subscription in subscriptions)))


def waiters(broker) -> int:
    return sum(name.startswith("airflow-rabbitmq-spark triggerer") for name in broker.connection_names())


def test_one_connection_for_everybody(broker, broker_endpoint, queues):
    async def work() -> None:
        multiplexer = shared(broker_endpoint)
        assert shared(broker.endpoint()) is multiplexer
        assert shared(broker.endpoint(heartbeat=7)) is not multiplexer
        async with subscribed(multiplexer, queues.names) as subscriptions:
            await in_thread(queues.publish, b"first", b"second")
            await all_of(subscriptions, b"second")
            assert multiplexer.connections_opened == 1
            # The broker may not have missed yet what other tests left behind.
            await in_thread(eventually, lambda: waiters(broker) == 1)

    asyncio.run(work())
    with Operations(broker_endpoint) as operations:
        assert {operations.inspect_queue(name).messages for name in queues.names} == {0}


def test_none_is_lost_when_the_connection_is_cut_again_and_again(broker, queues):
    async def work() -> None:
        with Proxy(broker.port) as proxy:
            multiplexer = Multiplexer(through(proxy, broker))
            async with subscribed(multiplexer, queues.names) as subscriptions:
                for number in range(3):
                    # While they are started, while messages come, and while nothing happens.
                    await asyncio.sleep(0.1 * number)
                    proxy.cut()
                    body = str(number).encode()
                    await in_thread(queues.publish, body)
                    await all_of(subscriptions, body)
                assert multiplexer.connections_opened > 1

    asyncio.run(work())


def test_a_queue_that_is_gone_ends_its_own_wait_only(broker_endpoint, queues):
    async def work() -> None:
        multiplexer = Multiplexer(broker_endpoint)
        gone, *others = queues.names
        never = f"{gone}-never"
        async with subscribed(multiplexer, [never, gone, *others]) as (missing, deleted, *rest):
            with pytest.raises(NotFound, match=never):
                await patiently(missing.next())
            await consuming(multiplexer, gone, *others)
            await in_thread(queues.delete, gone)
            with pytest.raises(NotFound, match=gone):
                await patiently(deleted.next())
            queues.names.remove(gone)
            await in_thread(queues.publish, b"x")
            await all_of(rest, b"x")
            assert multiplexer.connections_opened == 1
            with pytest.raises(NotFound):
                await multiplexer.inspect(gone)

    asyncio.run(work())


def test_a_defect_in_one_wait_ends_only_that(broker_endpoint, queues, monkeypatch, caplog):
    bad, *good = queues.names[:20]

    async def consume(lane, subscription, *, real=Lane.consume):
        if subscription.queue == bad:
            raise LookupError("nobody foresaw it")
        await real(lane, subscription)

    monkeypatch.setattr(Lane, "consume", consume)

    async def work() -> None:
        multiplexer = Multiplexer(broker_endpoint)
        async with subscribed(multiplexer, [bad, *good]) as (broken, *others):
            with pytest.raises(RabbitMQSparkError, match=f"^Queue '{bad}': LookupError: nobody foresaw it$"):
                await patiently(broken.next())
            await in_thread(queues.publish, b"x")
            await all_of(others, b"x")
            # And one that comes later, on the same connection.
            async with multiplexer.subscribe(queues.names[20]) as later:
                assert (await patiently(later.next())).body == b"x"
            assert multiplexer.connections_opened == 1

    asyncio.run(work())
    assert "could not be consumed; the other waits go on" in caplog.text


def test_what_is_not_acknowledged_goes_back(broker_endpoint, one):
    async def work() -> None:
        multiplexer = Multiplexer(broker_endpoint)
        for attempt in range(3):
            async with multiplexer.subscribe(one) as subscription:
                first = await patiently(subscription.next())
                assert (first.body, first.redelivered) == (b"1", attempt > 0)
                assert (await patiently(subscription.next())).body == b"2"
        # On one connection, so that it was not its end that gave them back; and while it lives on.
        async with multiplexer.subscribe(one) as subscription:
            subscription.ack(await patiently(subscription.next()))
            subscription.reject(await patiently(subscription.next()))
            assert multiplexer.connections_opened == 1

    with Publisher(broker_endpoint) as publisher:
        publisher.publish_many([Outgoing(b"1", one), Outgoing(b"2", one)])
    asyncio.run(work())
    with Operations(broker_endpoint) as operations:
        assert operations.inspect_queue(one).messages == 0


def test_an_alarm_does_not_stop_the_waiting(broker, broker_endpoint, one):
    async def work() -> None:
        multiplexer = Multiplexer(broker_endpoint)
        with alarm(broker):
            # The connection is opened, consumes and acknowledges all within it.
            async with multiplexer.subscribe(one) as subscription:
                for body in (b"1", b"2"):
                    message = await patiently(subscription.next())
                    assert message.body == body
                    subscription.ack(message)
            assert await multiplexer.inspect(one) == (0, 0)

    with Publisher(broker_endpoint) as publisher:
        publisher.publish_many([Outgoing(b"1", one), Outgoing(b"2", one)])
    asyncio.run(work())


def test_a_line_that_swallows_everything_is_noticed(broker, one):
    async def work() -> None:
        with Proxy(broker.port) as proxy:
            multiplexer = Multiplexer(through(proxy, broker, heartbeat=1, connection_timeout=2))
            async with multiplexer.subscribe(one) as subscription:
                await consuming(multiplexer, one)
                proxy.black_hole()
                await until(lambda: not multiplexer._connection.is_open)
                proxy.restore()
                with Publisher(broker.endpoint()) as publisher:
                    await in_thread(publisher.publish, "", one, b"x")
                assert (await patiently(subscription.next())).body == b"x"

    asyncio.run(work())


def test_a_broker_that_is_not_there_yet_is_waited_for(broker, one):
    async def work() -> None:
        with Proxy(broker.port) as proxy:
            proxy.refuse()
            multiplexer = Multiplexer(through(proxy, broker))
            async with multiplexer.subscribe(one) as subscription:
                waiting = asyncio.ensure_future(subscription.next())
                await until(lambda: proxy.accepted >= 3)
                assert not waiting.done()
                proxy.restore()
                with Publisher(broker.endpoint()) as publisher:
                    await in_thread(publisher.publish, "", one, b"x")
                assert (await patiently(waiting)).body == b"x"

    asyncio.run(work())


def test_what_waiting_does_not_cure_ends_every_wait_at_once(broker):
    async def work() -> None:
        multiplexer = Multiplexer(Endpoint.from_uri(broker.uri(password="canary-31"), ca_certificate=broker.ca_pem))
        async with subscribed(multiplexer, ["one", "two"]) as subscriptions:
            for subscription in subscriptions:
                with pytest.raises(AuthenticationFailed) as caught:
                    await patiently(subscription.next())
                assert "canary-31" not in str(caught.value)

    asyncio.run(work())


def test_nobody_to_ask(broker_endpoint):
    async def work() -> None:
        multiplexer = Multiplexer(Endpoint.from_uri(f"amqp://u:p@127.0.0.1:{free_port()}/"))
        assert await multiplexer.inspect("one") is None
        async with multiplexer.subscribe("one") as subscription:
            with pytest.raises((TimeoutError, asyncio.TimeoutError)):
                await asyncio.wait_for(subscription.next(), 2)

    asyncio.run(work())
    assert BrokerUnreachable.transient


def test_the_connection_ends_with_the_last_wait(broker, broker_endpoint, one, monkeypatch):
    monkeypatch.setattr("airflow_rabbitmq_spark.amqp.multiplexer.LINGER", 0.2)

    async def work() -> None:
        multiplexer = Multiplexer(broker_endpoint)
        for opened in (1, 2):
            async with multiplexer.subscribe(one):
                await consuming(multiplexer, one)
                assert multiplexer.connections_opened == opened
            await until(lambda: not multiplexer._connection.is_open)

    asyncio.run(work())
