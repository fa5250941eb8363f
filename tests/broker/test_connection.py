"""What people get wrong in a connection, on a real broker, by both of pika's adapters: each with its message."""

from __future__ import annotations

import json
import logging
import socket
import threading

import pytest
import trustme

from airflow_rabbitmq_spark import exceptions as ours
from airflow_rabbitmq_spark.amqp.background import Background
from airflow_rabbitmq_spark.amqp.blocking import Operations, connect
from airflow_rabbitmq_spark.amqp.connection import Connection
from airflow_rabbitmq_spark.amqp.endpoint import Endpoint
from airflow_rabbitmq_spark.amqp.probe import speaks_tls
from airflow_rabbitmq_spark.check import check
from airflow_rabbitmq_spark.connection import airflow_fields, main
from airflow_rabbitmq_spark.hooks.rabbitmq import RabbitMQHook
from tests.broker.drivers import eventually


def by_blocking(endpoint: Endpoint) -> None:
    connect(endpoint).close()


def by_asyncio(endpoint: Endpoint) -> None:
    background = Background("test")
    try:
        background.call(background.call(Connection.open(endpoint)).close())
    finally:
        background.stop()


WAYS = {"blocking": by_blocking, "asyncio": by_asyncio, "check": check}


def refused(endpoint: Endpoint, kind: type[ours.RabbitMQSparkError], *words: str) -> None:
    for name, way in WAYS.items():
        with pytest.raises(ours.RabbitMQSparkError) as caught:
            way(endpoint)
        assert type(caught.value) is kind, (name, caught.value)
        for word in words:
            assert word in str(caught.value), (name, word)
        if endpoint.password not in {"guest", ""}:
            assert endpoint.password not in str(caught.value)


@pytest.fixture
def listener():
    """A port where something accepts connections, and does with them what a test says."""
    servers: list[socket.socket] = []

    def listen(behave) -> int:
        server = socket.create_server(("127.0.0.1", 0))
        servers.append(server)

        def serve() -> None:
            kept = []
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    break
                kept.append(connection)
                behave(connection)
            for connection in kept:
                connection.close()

        threading.Thread(target=serve, daemon=True).start()
        return server.getsockname()[1]

    yield listen
    for server in servers:
        server.shutdown(socket.SHUT_RDWR)
        server.close()


def quick(uri: str, **options: object) -> Endpoint:
    return Endpoint.from_uri(uri, attempts=1, connection_timeout=1, **options)


def test_every_way_gets_in(broker_endpoint):
    for way in WAYS.values():
        way(broker_endpoint)


def test_the_host_has_no_address():
    refused(
        quick("amqps://u:secret@no-such-host.invalid/v"),
        ours.HostNotFound,
        "Name lookup of host 'no-such-host.invalid'",
        "spelling",
    )


def test_the_broker_is_down():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    refused(quick(f"amqps://u:secret@127.0.0.1:{port}"), ours.BrokerUnreachable, "refused", f"port {port}", "5671")


def test_plain_to_a_tls_port(broker):
    assert speaks_tls(broker.host, broker.port, 3)
    refused(
        quick(f"amqp://airflow:{broker.password}@127.0.0.1:{broker.port}"),
        ours.ProtocolMismatch,
        "speaks TLS",
        "`tls`",
        "amqps://",
    )


def test_tls_to_something_else(listener):
    def greet(connection: socket.socket) -> None:
        connection.sendall(b"AMQP\0\0\x09\x01" * 10)

    port = listener(greet)
    assert not speaks_tls("127.0.0.1", port, 3)
    refused(quick(f"amqps://u:secret@127.0.0.1:{port}"), ours.ProtocolMismatch, "does not speak TLS", "amqp://")


@pytest.mark.parametrize("scheme", ["amqp", "amqps"])
def test_it_accepts_and_says_nothing(listener, scheme):
    port = listener(lambda _: None)
    refused(
        quick(f"{scheme}://u:secret@127.0.0.1:{port}"),
        ours.BrokerUnreachable,
        "No answer",
        "1 s",
        "`connection_timeout`",
    )


@pytest.mark.parametrize("scheme", ["amqp", "amqps"])
def test_it_hangs_up(listener, scheme):
    port = listener(lambda connection: connection.close())
    refused(quick(f"{scheme}://u:secret@127.0.0.1:{port}"), ours.BrokerUnreachable, f"{port}")


def test_the_ca_is_missing(broker):
    refused(quick(broker.uri()), ours.TLSFailed, "TLS handshake", "authority", "Set option `ca_certificate`")


def test_the_ca_is_wrong(broker):
    refused(
        quick(broker.uri(), ca_certificate=trustme.CA().cert_pem.bytes().decode()),
        ours.TLSFailed,
        "does not come from an authority in option `ca_certificate`",
        "Replace",
    )


@pytest.mark.parametrize("ca", ["/no/such/ca.pem", "not a certificate", "-----BEGIN CERTIFICATE-----\nAAAA"])
def test_the_ca_is_no_certificate(broker, ca):
    with pytest.raises(ours.ConfigurationError, match="`ca_certificate`"):
        quick(broker.uri(), ca_certificate=ca)


def test_the_certificate_is_for_another_host(broker):
    refused(
        quick(broker.uri(), ca_certificate=broker.ca_pem, server_name="rabbit.example"),
        ours.TLSFailed,
        "not for 'rabbit.example'; it is for localhost, 127.0.0.1",
        "`server_name`",
    )


def test_the_password_is_wrong(broker):
    refused(
        quick(broker.uri(password="wrong-canary"), ca_certificate=broker.ca_pem),
        ours.AuthenticationFailed,
        "Login",
        "'airflow'",
        "Password",
    )


def test_the_user_does_not_exist(broker):
    refused(quick(broker.uri(user="who"), ca_certificate=broker.ca_pem), ours.AuthenticationFailed, "'who'")


def test_the_virtual_host_does_not_exist(broker):
    refused(
        quick(broker.uri(vhost="/missing"), ca_certificate=broker.ca_pem),
        ours.VirtualHostRefused,
        "no virtual host '/missing'",
        "rabbitmqctl add_vhost '/missing'",
        "%2F",
    )


def test_empty_and_slash_are_two_virtual_hosts(broker):
    uri = broker.uri(vhost="")
    assert uri.endswith("/")
    refused(quick(uri, ca_certificate=broker.ca_pem), ours.VirtualHostRefused, "no virtual host ''")
    by_blocking(quick(uri.removesuffix("/"), ca_certificate=broker.ca_pem))


def test_the_virtual_host_is_not_for_this_user(broker):
    refused(
        quick(broker.uri(user="nobody", vhost="other"), ca_certificate=broker.ca_pem),
        ours.VirtualHostRefused,
        "gives user 'nobody' no access",
        "rabbitmqctl set_permissions -p 'other' 'nobody'",
    )


def test_the_user_may_not_declare(broker):
    endpoint = quick(broker.uri(user="nobody"), ca_certificate=broker.ca_pem)
    with Operations(endpoint) as operations, pytest.raises(ours.AccessRefused) as caught:
        operations.declare_queue("not-allowed")
    assert "'nobody'" in str(caught.value)
    assert "rabbitmqctl set_permissions" in str(caught.value)
    told = check(endpoint)
    assert "Reached RabbitMQ" in told
    assert "'nobody' cannot run jobs" in told
    assert "rabbitmqctl set_permissions" in told


def test_no_more_connections(broker):
    broker.ctl("set_user_limits", "nobody", '{"max-connections": 0}')
    try:
        refused(quick(broker.uri(user="nobody"), ca_certificate=broker.ca_pem), ours.BrokerUnreachable, "limit")
    finally:
        broker.ctl("clear_user_limits", "nobody", "max-connections")


def test_what_the_check_tells(broker):
    before = broker.queues()
    told = check(broker.endpoint())
    for word in (
        f"Reached RabbitMQ {broker.version} (cluster broker{broker.port}@",
        f"amqps://airflow@127.0.0.1:{broker.port}/",
        "TLSv1.3 with TLS_",
        "certificate valid until ",
        "'airflow' may declare what jobs need in virtual host '/'",
    ):
        assert word in told
    left = broker.queues() - before
    assert not [name for name in left if ".job." in name or ".will." in name]
    assert "NOT VERIFIED" in check(Endpoint.from_uri(broker.uri(), verify=False))
    assert "NOT CHECKED" in check(broker.endpoint(check_hostname=False))


def test_the_hook_tells_the_same(broker, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_GOOD", broker.connection())
    passed, told = RabbitMQHook("good").test_connection()
    assert passed
    assert "Reached RabbitMQ" in told
    monkeypatch.setenv("AIRFLOW_CONN_BAD", broker.uri())
    passed, told = RabbitMQHook("bad").test_connection()
    assert not passed
    assert "`ca_certificate`" in told


def test_the_command_tells_the_same(broker, tmp_path, capsys):
    file = tmp_path / "credentials.json"
    file.write_text(json.dumps({"uri": broker.uri(), "ca_certificate_base64": None}))
    assert main([str(file), "--set", f"ca_certificate={broker.ca_file}", "--test"]) == 0
    printed = capsys.readouterr()
    assert "Reached RabbitMQ" in printed.err
    assert printed.out.startswith("rabbitmq://airflow:")
    assert main([str(file), "--test"]) == 1
    printed = capsys.readouterr()
    assert "TLSFailed" in printed.err
    assert printed.out == ""


def test_the_name_in_the_brokers_list_of_connections(broker):
    connection = connect(broker.endpoint(), connection_name="my own name")
    try:
        eventually(lambda: "my own name" in broker.connection_names())
    finally:
        connection.close()


def test_every_option_reaches_the_broker(broker):
    endpoint = broker.endpoint(heartbeat=47, frame_max=8192)
    connection = connect(endpoint)
    try:
        eventually(lambda: (47, 8192) in [(one["timeout"], one["frame_max"]) for one in broker.connections()])
    finally:
        connection.close()


def test_a_credential_with_any_characters_gets_in(broker):
    password = "p:/?#[]@!$&'()*+,;=%20 é\\\"<>`{}|^~"
    user = "u/@: é"
    broker.ctl("add_user", user, password)
    broker.ctl("set_permissions", user, ".*", ".*", ".*")
    try:
        endpoint = Endpoint.from_uri(broker.uri(user=user, password=password), ca_certificate=broker.ca_pem)
        for way in WAYS.values():
            way(Endpoint.from_uri(endpoint.to_uri()))
        assert airflow_fields(endpoint)["password"] == password
    finally:
        broker.ctl("delete_user", user)


def test_nothing_that_is_logged_holds_the_password(broker, caplog):
    caplog.set_level(logging.DEBUG)
    for endpoint in (broker.endpoint(), quick(broker.uri(), verify=False)):
        for way in WAYS.values():
            way(endpoint)
    assert broker.password not in caplog.text
