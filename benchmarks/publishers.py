"""The clients that ``benchmarks/publishing.py`` measures, each in a process of its own and in its own environment.

    python benchmarks/publishers.py CLIENT

Reads JSON lines from standard input: first the broker (``host, port, plain_port, user, password, ca_file, queue``), then
``{"mode": "one by one" | "batched", "messages": N}``; writes the seconds and CPU-seconds each took, or why it cannot. With a
``window`` the broker's line says how many messages of a batch may be unconfirmed. Only what a client
itself needs is imported, since each environment holds another one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import ssl
import sys
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Callable

BODY = b"x" * 1024

#: Messages under way at a time, where the client leaves it to its caller: what served each best (publishing.py --windows).
AIO_PIKA_WINDOW, PIKA_WINDOW = 2_000, 4_000

Where = dict[str, Any]


def _uri(broker: Where, query: str) -> str:
    user, password = quote(broker["user"], safe=""), quote(broker["password"], safe="")
    return f"rabbitmq://{user}:{password}@{broker['host']}:{broker['port']}/%2F?{query}"


class Client:
    """One client. A mode that it does not have is absent."""

    modes: dict[str, Callable[[int], None]]
    tls = True
    confirmed = True

    def __init__(self, broker: Where) -> None:
        self.queue = broker["queue"]
        self.window = broker.get("window")


class Ours(Client):
    def __init__(self, broker: Where) -> None:
        super().__init__(broker)
        os.environ["AIRFLOW_CONN_BENCHMARK"] = _uri(broker, f"tls=true&ca_certificate={quote(broker['ca_file'])}")
        from airflow_rabbitmq_spark.amqp import publisher
        from airflow_rabbitmq_spark.hooks.rabbitmq import RabbitMQHook

        publisher.WINDOW = self.window or publisher.WINDOW
        self.hook = RabbitMQHook("benchmark").__enter__()
        self.modes = {"one by one": self.each, "batched": self.many}

    def each(self, count: int) -> None:
        for _ in range(count):
            self.hook.publish(self.queue, BODY)

    def many(self, count: int) -> None:
        self.hook.publish_many(self.hook.message(self.queue, BODY) for _ in range(count))


def _pika_parameters(broker: Where) -> Any:
    import pika

    context = ssl.create_default_context(cafile=broker["ca_file"])
    return pika.ConnectionParameters(
        broker["host"],
        broker["port"],
        credentials=pika.PlainCredentials(broker["user"], broker["password"]),
        ssl_options=pika.SSLOptions(context, broker["host"]),
    )


class PikaBlocking(Client):
    """What most people write: a BlockingConnection with confirms. It waits for each, so there is no batch."""

    def __init__(self, broker: Where) -> None:
        super().__init__(broker)
        import pika

        self.channel = pika.BlockingConnection(_pika_parameters(broker)).channel()
        self.channel.confirm_delivery()
        self.modes = {"one by one": self.each}

    def each(self, count: int) -> None:
        import pika

        for _ in range(count):
            self.channel.basic_publish(
                "", self.queue, BODY, pika.BasicProperties(delivery_mode=2, content_type="text/plain"), mandatory=True
            )


class PikaWindow(Client):
    """pika's asyncio connection and a window written by hand: as little as can be done around pika.

    Returned messages are counted but not told apart, and nothing times out.
    """

    def __init__(self, broker: Where) -> None:
        super().__init__(broker)
        from pika.adapters.asyncio_connection import AsyncioConnection

        self.window = self.window or PIKA_WINDOW
        self.loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self.loop)
        self.confirmed_to = self.returned = 0
        self.wake: asyncio.Future[None] | None = None
        ready = self.loop.create_future()

        def confirmed(frame: Any) -> None:
            self.confirmed_to = frame.method.delivery_tag if frame.method.multiple else self.confirmed_to + 1
            if self.wake is not None and not self.wake.done():
                self.wake.set_result(None)

        def opened(channel: Any) -> None:
            self.channel = channel
            channel.add_on_return_callback(self.count_returned)
            channel.confirm_delivery(confirmed, callback=lambda _: ready.set_result(None))

        AsyncioConnection(
            _pika_parameters(broker),
            on_open_callback=lambda connection: connection.channel(on_open_callback=opened),
            custom_ioloop=self.loop,
        )
        self.loop.run_until_complete(ready)
        self.sent = 0
        self.modes = {"batched": lambda count: self.loop.run_until_complete(self.many(count))}

    def count_returned(self, *_: object) -> None:
        self.returned += 1

    async def until(self, number: int) -> None:
        while self.confirmed_to < number:
            self.wake = self.loop.create_future()
            await self.wake

    async def many(self, count: int) -> None:
        import pika

        for _ in range(count):
            if self.sent - self.confirmed_to >= self.window:
                await self.until(self.sent - self.window // 2)
            properties = pika.BasicProperties(delivery_mode=2, content_type="text/plain")
            self.channel.basic_publish("", self.queue, BODY, properties, mandatory=True)
            self.sent += 1
        await self.until(self.sent)
        if self.returned:
            raise RuntimeError("returned")


class AioPika(Client):
    def __init__(self, broker: Where) -> None:
        super().__init__(broker)
        import aio_pika

        self.window = self.window or AIO_PIKA_WINDOW
        self.loop = asyncio.new_event_loop()
        self.aio_pika = aio_pika

        async def connect() -> Any:
            connection = await aio_pika.connect(
                host=broker["host"],
                port=broker["port"],
                login=broker["user"],
                password=broker["password"],
                ssl=True,
                ssl_context=ssl.create_default_context(cafile=broker["ca_file"]),
            )
            self.connection = connection
            channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
            return channel.default_exchange

        self.exchange = self.loop.run_until_complete(connect())
        self.modes = {
            "one by one": lambda count: self.loop.run_until_complete(self.each(count)),
            "batched": lambda count: self.loop.run_until_complete(self.many(count)),
        }

    def send(self) -> Any:
        message = self.aio_pika.Message(BODY, delivery_mode=self.aio_pika.DeliveryMode.PERSISTENT)
        return self.exchange.publish(message, self.queue, mandatory=True)

    async def each(self, count: int) -> None:
        for _ in range(count):
            await self.send()

    async def many(self, count: int) -> None:
        while count:
            window = min(count, self.window)
            await asyncio.gather(*(self.send() for _ in range(window)))
            count -= window


class ProviderRabbitMQ5(Client):
    """apache-airflow-provider-rabbitmq: a connection for each call."""

    def __init__(self, broker: Where) -> None:
        super().__init__(broker)
        connection = {
            "conn_type": "rabbitmq",
            "host": broker["host"],
            "port": broker["port"],
            "login": broker["user"],
            "password": broker["password"],
            "extra": {"ssl": True, "ssl_ca_certs": broker["ca_file"], "ssl_server_hostname": broker["host"]},
        }
        os.environ["AIRFLOW_CONN_BENCHMARK"] = json.dumps(connection)
        from airflow.provider.rabbitmq.hooks.rabbitmq_hook import RabbitMQHook

        self.hook = RabbitMQHook("benchmark", confirm=True, mandatory=True)
        self.properties = {"delivery_mode": 2}
        self.modes = {"one by one": self.each, "batched": self.many}

    def each(self, count: int) -> None:
        for _ in range(count):
            self.hook.publish_sync(BODY, "", self.queue, self.properties)

    def many(self, count: int) -> None:
        self.hook.publish_batch_sync([BODY] * count, "", self.queue, self.properties)


class ProviderRabbitMQ06(Client):
    """airflow-provider-rabbitmq: a connection for each message, which it leaves open; knows neither TLS nor confirms."""

    tls = confirmed = False

    def __init__(self, broker: Where) -> None:
        super().__init__(broker)
        user, password = quote(broker["user"], safe=""), quote(broker["password"], safe="")
        address = f"{broker['host']}:{broker['plain_port']}"
        os.environ["AIRFLOW_CONN_BENCHMARK"] = f"amqp://{user}:{password}@{address}/%2F"
        from rabbitmq_provider.hooks.rabbitmq import RabbitMQHook

        self.hook = RabbitMQHook("benchmark")
        self.modes = {"one by one": self.each}

    def each(self, count: int) -> None:
        for _ in range(count):
            self.hook.publish("", self.queue, BODY.decode())


class ProviderRmq(Client):
    """airflow-provider-rmq: without confirms, so that this is how fast it hands them over and not how fast they arrive."""

    confirmed = False

    def __init__(self, broker: Where) -> None:
        super().__init__(broker)
        extra = {"ssl_enabled": True, "ca_certs": broker["ca_file"]}
        connection = {
            "conn_type": "amqp",
            "host": broker["host"],
            "port": broker["port"],
            "login": broker["user"],
            "password": broker["password"],
            "extra": extra,
        }
        os.environ["AIRFLOW_CONN_BENCHMARK"] = json.dumps(connection)
        import pika
        from airflow_provider_rmq.hooks.rmq import RMQHook

        self.pika = pika
        self.hook = RMQHook("benchmark")
        self.hook.get_channel()
        self.modes = {"one by one": self.each}

    def each(self, count: int) -> None:
        for _ in range(count):
            self.hook.basic_publish("", self.queue, BODY, self.pika.BasicProperties(delivery_mode=2))


CLIENTS = {
    "ours": Ours,
    "pika-blocking": PikaBlocking,
    "pika-window": PikaWindow,
    "aio-pika": AioPika,
    "provider-5.1.0": ProviderRabbitMQ5,
    "provider-0.6.1": ProviderRabbitMQ06,
    "provider-rmq-2.6.0": ProviderRmq,
}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what Airflow prints is no answer
    broker = json.loads(sys.stdin.readline())
    logging.disable(logging.WARNING)
    try:
        client = CLIENTS[sys.argv[1]](broker)
    except Exception as error:  # noqa: BLE001 - a client that cannot run here says so in the table
        answers.write(json.dumps({"problem": f"{type(error).__name__}: {error}"[:200]}) + "\n")
        return
    answers.write(json.dumps({"modes": list(client.modes), "tls": client.tls, "confirmed": client.confirmed}) + "\n")
    for line in sys.stdin:
        order = json.loads(line)
        start, cpu = time.perf_counter(), time.process_time()
        client.modes[order["mode"]](order["messages"])
        answers.write(json.dumps({"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu}) + "\n")


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
