"""Several hosts: the next one takes over when one is dead, silent, unknown, or dies between two operations."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import ExitStack

import pika
import pytest

from airflow_rabbitmq_spark import exceptions as ours
from airflow_rabbitmq_spark.amqp.background import Background
from airflow_rabbitmq_spark.amqp.blocking import Operations, connect
from airflow_rabbitmq_spark.amqp.connection import Connection
from airflow_rabbitmq_spark.amqp.diagnosis import explain
from airflow_rabbitmq_spark.amqp.endpoint import Endpoint
from airflow_rabbitmq_spark.amqp.publisher import Publisher
from airflow_rabbitmq_spark.check import check
from stack.proxy import Proxy


def dead_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def several(broker, *hosts: str, **options: object) -> Endpoint:
    last = f"{broker.host}:{broker.port}"
    uri = broker.uri().replace(last, ",".join((*hosts, last)))
    return Endpoint.from_uri(uri, ca_certificate=broker.ca_pem, connection_timeout=3, **options)


def by_asyncio(endpoint: Endpoint) -> None:
    background = Background("test")
    try:
        background.call(background.call(Connection.open(endpoint)).close())
    finally:
        background.stop()


def by_publisher(endpoint: Endpoint) -> None:
    with Publisher(endpoint) as publisher:
        publisher.publish("", "no-such-queue", b"x", mandatory=False)


WAYS = {"blocking": lambda endpoint: connect(endpoint).close(), "asyncio": by_asyncio, "publisher": by_publisher}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("first", ["dead", "black-holed", "unknown", "hangs up", "wrong certificate"])
def test_the_first_host_is_no_good(broker, first, way):
    with ExitStack() as stack:
        if first == "dead":
            host = f"127.0.0.1:{dead_port()}"
        elif first == "unknown":
            host = "no-such-host.invalid:5671"
        else:
            proxy = stack.enter_context(Proxy(broker.port))
            host = f"127.0.0.1:{proxy.port}"
            if first == "black-holed":
                proxy.black_hole()
            elif first == "hangs up":
                proxy.refuse()
            else:
                host = f"127.0.0.2:{_forward(stack, broker)}"  # which is not in the certificate
        WAYS[way](several(broker, host, attempts=1))


def _forward(stack: ExitStack, broker) -> int:
    """A port on another loopback address that leads to the broker."""
    server = stack.enter_context(socket.create_server(("127.0.0.2", 0)))

    def serve() -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            upstream = socket.create_connection((broker.host, broker.port))
            for source, target in ((client, upstream), (upstream, client)):
                threading.Thread(target=_pump, args=(source, target), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    stack.callback(server.shutdown, socket.SHUT_RDWR)
    return server.getsockname()[1]


def _pump(source: socket.socket, target: socket.socket) -> None:
    with source, target:
        try:
            while data := source.recv(65536):
                target.sendall(data)
        except OSError:
            return


def test_the_check_names_each_host(broker):
    dead = dead_port()
    told = check(several(broker, f"127.0.0.1:{dead}", attempts=1))
    assert f"Reached RabbitMQ {broker.version}" in told
    assert f"at amqps://airflow@127.0.0.1:{broker.port}/" in told
    assert f"But 127.0.0.1:{dead} did not let us in: TCP connection" in told


def test_all_are_dead(broker):
    endpoint = Endpoint.from_uri(f"amqps://u:p@127.0.0.1:{dead_port()},127.0.0.1:{dead_port()}", attempts=2, delay=0.01)
    for way in (*WAYS.values(), check):
        with pytest.raises(ours.BrokerUnreachable, match="refused"):
            way(endpoint)


def test_what_waiting_does_not_cure_is_told_before_what_it_may(broker):
    with Proxy(broker.port) as proxy:
        uri = f"amqps://airflow:wrong@127.0.0.1:{dead_port()},127.0.0.1:{proxy.port}/"
        endpoint = Endpoint.from_uri(uri, ca_certificate=broker.ca_pem, attempts=5, delay=0.01)
        for asked, way in enumerate((*WAYS.values(), check), start=1):
            with pytest.raises(ours.AuthenticationFailed):
                way(endpoint)
            # And that at once: nobody was asked a second time.
            assert proxy.accepted == asked


def test_a_host_dies_between_two_operations(broker):
    with Proxy(broker.port) as first, Proxy(broker.port) as second:
        uri = broker.uri().replace(f"{broker.port}", f"{first.port},127.0.0.1:{second.port}")
        endpoint = Endpoint.from_uri(uri, ca_certificate=broker.ca_pem, attempts=1, connection_timeout=2)
        with Operations(endpoint) as operations:
            operations.declare_queue("between", arguments={"x-expires": 60_000})
            assert (first.accepted, second.accepted) == (1, 0)
            first.refuse()
            time.sleep(0.2)
            assert operations.inspect_queue("between") is not None
            assert second.accepted == 1
            second.cut()
            time.sleep(0.2)
            first.restore()
            operations.delete_queue("between")
        with Publisher(endpoint) as publisher:
            publisher.publish("", "x", b"1", mandatory=False)
            first.refuse()
            time.sleep(0.2)
            publisher.publish("", "x", b"2", mandatory=False)


def test_a_broker_that_comes_up_later_is_waited_for(broker):
    with Proxy(broker.port) as proxy:
        proxy.refuse()
        uri = broker.uri().replace(f":{broker.port}", f":{proxy.port}")
        endpoint = Endpoint.from_uri(uri, ca_certificate=broker.ca_pem, attempts=20, delay=0.2)
        timer = threading.Timer(1.0, proxy.restore)
        timer.start()
        try:
            connect(endpoint).close()
        finally:
            timer.join()
        assert proxy.accepted > 1


def test_a_connection_that_is_cut_while_it_is_used(broker):
    with Proxy(broker.port) as proxy:
        uri = broker.uri().replace(f":{broker.port}", f":{proxy.port}")
        endpoint = Endpoint.from_uri(uri, ca_certificate=broker.ca_pem, attempts=1)
        connection = connect(endpoint)
        channel = connection.channel()
        proxy.cut()
        with pytest.raises(pika.exceptions.AMQPConnectionError) as caught:
            channel.queue_declare("never", passive=True)
        explained = explain(caught.value, endpoint)
        assert type(explained) is ours.ConnectionLost
        assert "was lost" in str(explained)
