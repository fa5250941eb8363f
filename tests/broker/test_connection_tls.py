"""Every TLS option against real brokers: who is trusted, who is shown, and what is said when it fails."""

from __future__ import annotations

import datetime as dt
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from airflow_rabbitmq_spark import exceptions as ours
from airflow_rabbitmq_spark.amqp.background import Background
from airflow_rabbitmq_spark.amqp.blocking import connect
from airflow_rabbitmq_spark.amqp.connection import Connection
from airflow_rabbitmq_spark.amqp.endpoint import Endpoint
from airflow_rabbitmq_spark.check import check
from stack.broker import Broker

if TYPE_CHECKING:
    from collections.abc import Iterator

PASSPHRASE = "canary passphrase"
UTC = dt.timezone.utc


def pem(*blobs: trustme.Blob) -> str:
    return b"".join(blob.bytes() for blob in blobs).decode()


def ca_pem(ca: trustme.CA) -> str:
    return pem(ca.cert_pem)


def client(leaf: trustme.LeafCert, **more: object) -> dict[str, object]:
    return {"client_certificate": pem(*leaf.cert_chain_pems), "private_key": pem(leaf.private_key_pem), **more}


def ways(endpoint: Endpoint) -> Iterator[object]:
    background = Background("test")
    try:
        yield lambda: connect(endpoint).close()
        yield lambda: background.call(background.call(Connection.open(endpoint)).close())
        yield lambda: check(endpoint)
    finally:
        background.stop()


def let_in(endpoint: Endpoint) -> None:
    for way in ways(endpoint):
        way()


def refused(endpoint: Endpoint, kind: type[ours.RabbitMQSparkError], *words: str) -> None:
    for way in ways(endpoint):
        with pytest.raises(ours.RabbitMQSparkError) as caught:
            way()
        assert type(caught.value) is kind, caught.value
        for word in words:
            assert word in str(caught.value)
        assert "PRIVATE KEY" not in str(caught.value)
        assert PASSPHRASE not in str(caught.value)


# The broker's certificate ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def old_broker(tmp_path_factory):
    """A node that speaks TLS 1.2 and no newer, and plain AMQP on another port."""
    with Broker(
        tmp_path_factory.mktemp("old-broker"), plain=True, configuration="ssl_options.versions.1 = tlsv1.2"
    ) as running:
        yield running


@contextmanager
def showing(broker: Broker, leaf: trustme.LeafCert) -> Iterator[None]:
    """Let the node show another certificate."""
    files = broker.authority.certificate_file, broker.authority.key_file
    before = [file.read_bytes() for file in files]
    try:
        files[0].write_text(pem(*leaf.cert_chain_pems))
        files[1].write_text(pem(leaf.private_key_pem))
        broker.evaluate("ssl:clear_pem_cache()")
        yield
    finally:
        for file, content in zip(files, before, strict=True):
            file.write_bytes(content)
        broker.evaluate("ssl:clear_pem_cache()")


def make(broker: Broker, ca: str, **options: object) -> Endpoint:
    return Endpoint.from_uri(broker.uri(), ca_certificate=ca, attempts=1, connection_timeout=5, **options)


def test_an_expired_certificate(old_broker):
    ca = old_broker.authority.ca
    leaf = ca.issue_cert("127.0.0.1", not_after=dt.datetime(2020, 1, 1, tzinfo=UTC))
    with showing(old_broker, leaf):
        refused(make(old_broker, ca_pem(ca)), ours.TLSFailed, "has expired", "Renew it on the broker")


def test_a_certificate_that_is_not_valid_yet(old_broker):
    ca = old_broker.authority.ca
    leaf = ca.issue_cert("127.0.0.1", not_before=dt.datetime(2999, 1, 1, tzinfo=UTC))
    with showing(old_broker, leaf):
        refused(make(old_broker, ca_pem(ca)), ours.TLSFailed, "not valid yet", "clocks")


def test_a_certificate_that_ends_soon_is_told(old_broker):
    ca = old_broker.authority.ca
    soon = dt.datetime.now(UTC) + dt.timedelta(days=5, hours=1)
    with showing(old_broker, ca.issue_cert("127.0.0.1", not_after=soon)):
        told = check(make(old_broker, ca_pem(ca)))
    assert f"{soon:%Y-%m-%d}, IN 5 DAYS" in told


def test_another_host_name(old_broker):
    ca = old_broker.authority.ca
    with showing(old_broker, ca.issue_cert("rabbit.example", "10.0.0.1")):
        refused(
            make(old_broker, ca_pem(ca)),
            ours.TLSFailed,
            "not for '127.0.0.1'; it is for rabbit.example, 10.0.0.1",
            "`server_name`",
        )
        let_in(make(old_broker, ca_pem(ca), server_name="rabbit.example"))
        let_in(make(old_broker, ca_pem(ca), check_hostname=False))


def test_an_unknown_authority(old_broker):
    stranger = trustme.CA()
    with showing(old_broker, stranger.issue_cert("127.0.0.1")):
        refused(make(old_broker, old_broker.ca_pem), ours.TLSFailed, "does not come from an authority in option")
        let_in(Endpoint.from_uri(old_broker.uri(), verify=False))


def test_an_intermediate_authority(old_broker):
    root = trustme.CA()
    middle = root.create_child_ca()
    leaf = middle.issue_cert("127.0.0.1")
    with showing(old_broker, leaf):
        let_in(make(old_broker, ca_pem(root)))  # the node sends the chain
        let_in(make(old_broker, ca_pem(middle)))  # trusting the one in the middle is enough
        let_in(make(old_broker, pem(leaf.cert_chain_pems[0])))  # and so is the very certificate
        let_in(make(old_broker, old_broker.ca_pem + ca_pem(root)))  # one of several
        refused(make(old_broker, old_broker.ca_pem), ours.TLSFailed, "`ca_certificate`")


def test_the_chain_is_not_sent(old_broker):
    root = trustme.CA()
    middle = root.create_child_ca()
    leaf = middle.issue_cert("127.0.0.1")
    leaf.cert_chain_pems[1:] = []
    with showing(old_broker, leaf):
        refused(make(old_broker, ca_pem(root)), ours.TLSFailed, "does not come from an authority in option")
        let_in(make(old_broker, ca_pem(root) + ca_pem(middle)))


def test_tls_versions(broker, old_broker):
    assert "TLSv1.2 with" in check(make(old_broker, old_broker.ca_pem))
    assert "TLSv1.3 with" in check(make(broker, broker.ca_pem))
    let_in(make(broker, broker.ca_pem, minimum_tls_version="TLSv1.3"))
    refused(make(old_broker, old_broker.ca_pem, minimum_tls_version="TLSv1.3"), ours.TLSFailed, "`minimum_tls_version`")


def test_the_plain_port(old_broker):
    plain = f"amqp://airflow:{old_broker.password}@127.0.0.1:{old_broker.plain_port}"
    let_in(Endpoint.from_uri(plain))
    assert "not encrypted" in check(Endpoint.from_uri(plain))
    refused(
        Endpoint.from_uri(plain.replace("amqp:", "amqps:"), attempts=1),
        ours.ProtocolMismatch,
        f"port {old_broker.plain_port} does not speak TLS",
        "amqp://",
    )


def test_external_where_the_broker_does_not_offer_it(old_broker):
    leaf = old_broker.authority.ca.issue_cert("a@example.com", common_name="airflow")
    endpoint = Endpoint.from_mapping(
        {
            "hosts": [[old_broker.host, old_broker.port]],
            "tls": True,
            "ca_certificate": old_broker.ca_pem,
            "sasl_mechanism": "EXTERNAL",
            **client(leaf),
        }
    )
    refused(endpoint, ours.AuthenticationFailed, "does not offer mechanism EXTERNAL", "rabbitmq_auth_mechanism_ssl")


# The client's certificate ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def strict_broker(tmp_path_factory):
    """A node that wants a client certificate, and takes the user from it on request."""
    running = Broker(
        tmp_path_factory.mktemp("strict-broker"),
        configuration="""
            ssl_options.verify = verify_peer
            ssl_options.fail_if_no_peer_cert = true
            auth_mechanisms.1 = PLAIN
            auth_mechanisms.2 = EXTERNAL
            ssl_cert_login_from = common_name
        """.replace("    ", ""),
    )
    (running.directory / "enabled_plugins").write_text("[rabbitmq_auth_mechanism_ssl].\n")
    # A node that wants a certificate does not answer one who shows none, so its log tells that it is up.
    log = running.directory / "broker.log"
    running._answers = lambda: "Server startup complete" in log.read_text()
    with running:
        yield running


def strict(broker: Broker, **options: object) -> Endpoint:
    return make(broker, broker.ca_pem, **options)


def external(broker: Broker, leaf: trustme.LeafCert) -> Endpoint:
    uri = f"amqps://{broker.host}:{broker.port}"
    return Endpoint.from_uri(uri, ca_certificate=broker.ca_pem, sasl_mechanism="EXTERNAL", attempts=1, **client(leaf))


def test_mutual_tls(strict_broker):
    leaf = strict_broker.authority.ca.issue_cert("a@example.com")
    let_in(strict(strict_broker, **client(leaf)))


def test_mutual_tls_with_a_passphrase(strict_broker):
    leaf = strict_broker.authority.ca.issue_cert("a@example.com")
    key = load_pem_private_key(leaf.private_key_pem.bytes(), None).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(PASSPHRASE.encode())
    )
    let_in(strict(strict_broker, **client(leaf, private_key=key.decode(), private_key_passphrase=PASSPHRASE)))


def test_mutual_tls_with_a_chain(strict_broker):
    leaf = strict_broker.authority.ca.create_child_ca().issue_cert("a@example.com")
    let_in(strict(strict_broker, **client(leaf)))


def test_mutual_tls_from_files(strict_broker, tmp_path):
    leaf = strict_broker.authority.ca.issue_cert("a@example.com")
    leaf.private_key_and_cert_chain_pem.write_to_path(tmp_path / "client.pem")
    let_in(strict(strict_broker, client_certificate=str(tmp_path / "client.pem")))


def test_no_client_certificate(strict_broker):
    for _ in range(5):  # the alert races with what pika writes; the message must not
        refused(
            strict(strict_broker), ours.TLSFailed, "wants a client certificate", "`client_certificate`", "`private_key`"
        )


def test_a_client_certificate_of_another_authority(strict_broker):
    leaf = trustme.CA().issue_cert("a@example.com")
    refused(
        strict(strict_broker, **client(leaf)), ours.TLSFailed, "does not trust the authority", "`client_certificate`"
    )


def test_an_expired_client_certificate(strict_broker):
    leaf = strict_broker.authority.ca.issue_cert("a@example.com", not_after=dt.datetime(2020, 1, 1, tzinfo=UTC))
    refused(strict(strict_broker, **client(leaf)), ours.TLSFailed, "client certificate has expired")


def test_external(strict_broker):
    leaf = strict_broker.authority.ca.issue_cert("a@example.com", common_name="airflow")
    endpoint = external(strict_broker, leaf)
    let_in(endpoint)
    let_in(Endpoint.from_uri(endpoint.to_uri()))
    assert "The user of the client certificate may declare" in check(endpoint)


def test_external_with_an_unknown_user(strict_broker):
    leaf = strict_broker.authority.ca.issue_cert("a@example.com", common_name="stranger")
    refused(external(strict_broker, leaf), ours.AuthenticationFailed, "name in the client certificate")
