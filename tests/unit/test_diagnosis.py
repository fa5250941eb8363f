"""Every failure pika, OpenSSL and the socket know has one explanation of ours."""

from __future__ import annotations

import errno
import inspect
import socket
import ssl

import pika.exceptions
import pytest
from pika.adapters.utils import connection_workflow as workflow

from airflow_rabbitmq_spark import exceptions as ours
from airflow_rabbitmq_spark.amqp import probe
from airflow_rabbitmq_spark.amqp.diagnosis import EXPLANATIONS, explain
from airflow_rabbitmq_spark.amqp.endpoint import TLS, Endpoint

PASSWORD = "canary-5c1e"
PLAIN = Endpoint.from_uri(f"amqp://u:{PASSWORD}@broker.example/v")
SECURE = Endpoint.from_uri(f"amqps://u:{PASSWORD}@broker.example/v")
WITH_CA = Endpoint(hosts=(("broker.example", 5671),), username="u", password=PASSWORD, tls=TLS(ca="PEM"))
EXTERNAL = Endpoint(hosts=(("broker.example", 5671),), username="", password="", tls=TLS(), sasl_mechanism="EXTERNAL")


@pytest.fixture(autouse=True)
def _no_sockets(monkeypatch):
    """What a look at the port would say: nothing. The tests on a broker look for real."""
    monkeypatch.setattr(probe, "speaks_tls", lambda *_: False)
    monkeypatch.setattr(probe, "complaint", lambda *_: None)
    monkeypatch.setattr(probe, "certificate_names", lambda *_: ())


def classes(module) -> list[type[BaseException]]:
    return [item for _, item in inspect.getmembers(module, inspect.isclass) if issubclass(item, BaseException)]


def test_every_exception_of_pikas_has_an_explanation():
    assert [kind.__name__ for kind in classes(pika.exceptions) if kind not in EXPLANATIONS] == []


def test_every_exception_of_pikas_connecting_has_an_explanation():
    for kind in classes(workflow):
        if issubclass(kind, workflow.AMQPConnectorException):
            assert any(base in EXPLANATIONS for base in kind.__mro__), kind


def make(kind: type[BaseException]) -> BaseException:
    if issubclass(kind, (pika.exceptions.ConnectionClosed, pika.exceptions.ChannelClosed)):
        return kind(320, "text")
    if issubclass(kind, (pika.exceptions.UnroutableError, pika.exceptions.NackError)):
        return kind([])
    return kind("text", "more")


@pytest.mark.parametrize("kind", [kind for kind in EXPLANATIONS if kind.__module__.startswith("pika")])
@pytest.mark.parametrize("endpoint", [PLAIN, SECURE])
def test_explanations(kind, endpoint):
    explained = explain(make(kind), endpoint)
    assert isinstance(explained, ours.RabbitMQSparkError)
    assert "broker.example" in str(explained)
    assert PASSWORD not in str(explained)


def wrapped(error: BaseException) -> list[BaseException]:
    """One failure as the blocking adapter and the asyncio adapter put it."""
    return [
        error,
        pika.exceptions.AMQPConnectionError(workflow.AMQPConnectorSocketConnectError(error)),
        workflow.AMQPConnectionWorkflowFailed([workflow.AMQPConnectorTransportSetupError(error)]),
        pika.exceptions.AMQPConnectionError(
            workflow.AMQPConnectionWorkflowFailed([workflow.AMQPConnectorSocketConnectError(error)])
        ),
    ]


def certificate_error(code: int, message: str) -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, f"certificate verify failed: {message}")
    error.verify_code, error.verify_message = code, message
    return error


def ssl_error(reason: str) -> ssl.SSLError:
    error = ssl.SSLError(1, f"[SSL: {reason}] {reason.lower()} (_ssl.c:1006)")
    error.reason = reason
    return error


def closed_in_text(code: int, text: str) -> str:
    return repr(pika.exceptions.ConnectionClosedByBroker(code, text))


P = pika.exceptions
CASES = [
    (
        socket.gaierror(socket.EAI_NONAME, "x"),
        PLAIN,
        ours.HostNotFound,
        ("Name lookup", "'broker.example'", "spelling"),
    ),
    (socket.gaierror(socket.EAI_AGAIN, "x"), PLAIN, ours.HostNotFound, ("name server does not answer",)),
    (ConnectionRefusedError(errno.ECONNREFUSED, "x"), PLAIN, ours.BrokerUnreachable, ("refused", "port 5672", "5671")),
    (OSError(errno.EHOSTUNREACH, "x"), PLAIN, ours.BrokerUnreachable, ("no route",)),
    (ConnectionResetError(errno.ECONNRESET, "x"), PLAIN, ours.BrokerUnreachable, ("dropped it at once",)),
    (OSError(errno.EMFILE, "Too many open files"), PLAIN, ours.BrokerUnreachable, ("Too many open files",)),
    (TimeoutError("timed out"), PLAIN, ours.BrokerUnreachable, ("No answer", "15 s", "`connection_timeout`")),
    (workflow.AMQPConnectorStackTimeout("x"), SECURE, ours.BrokerUnreachable, ("No answer",)),
    (certificate_error(19, "self-signed"), SECURE, ours.TLSFailed, ("authority", "Set option `ca_certificate`")),
    (certificate_error(19, "self-signed"), WITH_CA, ours.TLSFailed, ("in option `ca_certificate`", "Replace")),
    (certificate_error(20, "unable"), WITH_CA, ours.TLSFailed, ("Replace `ca_certificate`",)),
    (certificate_error(18, "self-signed"), SECURE, ours.TLSFailed, ("signed by itself", "`ca_certificate`")),
    (certificate_error(10, "expired"), SECURE, ours.TLSFailed, ("has expired", "Renew")),
    (certificate_error(9, "not yet valid"), SECURE, ours.TLSFailed, ("not valid yet", "clocks")),
    (certificate_error(62, "Hostname mismatch"), SECURE, ours.TLSFailed, ("not for 'broker.example'", "`server_name`")),
    (certificate_error(64, "IP mismatch"), SECURE, ours.TLSFailed, ("not for", "`server_name`")),
    (certificate_error(68, "CA signature digest too weak"), SECURE, ours.TLSFailed, ("too weak",)),
    (ssl_error("WRONG_VERSION_NUMBER"), SECURE, ours.ProtocolMismatch, ("does not speak TLS", "5671", "`tls` off")),
    (ssl_error("RECORD_LAYER_FAILURE"), SECURE, ours.ProtocolMismatch, ("does not speak TLS",)),
    (ssl_error("TLSV13_ALERT_CERTIFICATE_REQUIRED"), SECURE, ours.TLSFailed, ("client certificate", "`private_key`")),
    (ssl_error("SSLV3_ALERT_HANDSHAKE_FAILURE"), SECURE, ours.TLSFailed, ("no cipher or version in common",)),
    (ssl_error("TLSV1_ALERT_PROTOCOL_VERSION"), SECURE, ours.TLSFailed, ("`minimum_tls_version`",)),
    (ssl_error("UNSUPPORTED_PROTOCOL"), SECURE, ours.TLSFailed, ("`minimum_tls_version`",)),
    (ssl_error("UNEXPECTED_EOF_WHILE_READING"), SECURE, ours.BrokerUnreachable, ("hung up in the middle",)),
    (ssl_error("SOMETHING_NEW"), SECURE, ours.TLSFailed, ("SOMETHING_NEW",)),
]


@pytest.mark.parametrize(("error", "endpoint", "kind", "words"), CASES)
def test_connecting(error, endpoint, kind, words):
    for form in wrapped(error):
        explained = explain(form, endpoint)
        assert type(explained) is kind
        for word in (*words, endpoint.describe().split("//")[1] if kind is not ours.HostNotFound else "broker.example"):
            assert word in str(explained)
        assert PASSWORD not in str(explained)


LATER = [
    (
        P.ProbableAuthenticationError(closed_in_text(403, "ACCESS_REFUSED - Login")),
        SECURE,
        ours.AuthenticationFailed,
        ("'u'", "Login and Password"),
    ),
    (
        P.ProbableAuthenticationError(closed_in_text(403, "ACCESS_REFUSED")),
        EXTERNAL,
        ours.AuthenticationFailed,
        ("client certificate",),
    ),
    (
        P.ProbableAuthenticationError(closed_in_text(403, "x")),
        Endpoint.from_uri("amqp://broker.example"),
        ours.AuthenticationFailed,
        ("'guest'", "own machine"),
    ),
    (P.ProbableAuthenticationError(repr(P.StreamLostError("eof"))), SECURE, ours.BrokerUnreachable, ("cut off",)),
    (P.AuthenticationError("PLAIN"), SECURE, ours.AuthenticationFailed, ("mechanism PLAIN", "`sasl_mechanism`")),
    (P.AuthenticationError("EXTERNAL"), EXTERNAL, ours.AuthenticationFailed, ("rabbitmq_auth_mechanism_ssl",)),
    (
        P.ProbableAccessDeniedError(closed_in_text(530, "NOT_ALLOWED - vhost v not found")),
        SECURE,
        ours.VirtualHostRefused,
        ("no virtual host 'v'", "add_vhost"),
    ),
    (
        P.ProbableAccessDeniedError(closed_in_text(530, "NOT_ALLOWED - access refused")),
        SECURE,
        ours.VirtualHostRefused,
        ("no access", "set_permissions"),
    ),
    (
        P.ProbableAccessDeniedError(closed_in_text(530, "connection limit (1) is reached")),
        SECURE,
        ours.BrokerUnreachable,
        ("limit",),
    ),
    (
        P.ProbableAccessDeniedError(closed_in_text(541, "INTERNAL_ERROR - vhost is down")),
        SECURE,
        ours.BrokerUnreachable,
        ("cut off",),
    ),
    (
        P.IncompatibleProtocolError(repr(P.StreamLostError("Transport indicated EOF"))),
        PLAIN,
        ours.BrokerUnreachable,
        ("hung up at the first words",),
    ),
    (
        P.ConnectionOpenAborted("Connection.close() called (320): Timeout while setting up"),
        PLAIN,
        ours.BrokerUnreachable,
        ("No answer",),
    ),
    (P.ConnectionOpenAborted("closed"), PLAIN, ours.ConnectionLost, ("given up",)),
    (P.StreamLostError("reset"), SECURE, ours.ConnectionLost, ("was lost",)),
    (P.AMQPHeartbeatTimeout("x"), SECURE, ours.ConnectionLost, ("heartbeat", "10 s")),
    (P.ConnectionBlockedTimeout("x"), SECURE, ours.BrokerBlocked, ("alarm", "60 s", "`blocked_connection_timeout`")),
    (P.ConnectionClosedByBroker(320, "CONNECTION_FORCED - shutdown"), SECURE, ours.ConnectionLost, ("shutdown",)),
    (P.ConnectionClosedByBroker(403, "ACCESS_REFUSED - x"), SECURE, ours.AccessRefused, ("set_permissions",)),
    (
        P.ConnectionClosedByBroker(503, "COMMAND_INVALID - unknown exchange type"),
        SECURE,
        ours.ConnectionFailed,
        ("unknown exchange type",),
    ),
    (P.ConnectionClosedByBroker(501, "FRAME_ERROR - frame too large"), SECURE, ours.ConnectionFailed, ("`frame_max`",)),
    (
        P.ChannelClosedByBroker(403, "ACCESS_REFUSED - access to queue 'q' refused"),
        SECURE,
        ours.AccessRefused,
        ("'u'", "set_permissions", "'v'"),
    ),
    (
        P.ChannelClosedByBroker(403, "ACCESS_REFUSED - queue 'q' in exclusive use"),
        SECURE,
        ours.AccessRefused,
        ("for itself",),
    ),
    (
        P.ChannelClosedByBroker(403, "queue name 'amq.x' contains reserved prefix"),
        SECURE,
        ours.AccessRefused,
        ("amq.",),
    ),
    (P.ChannelClosedByBroker(404, "NOT_FOUND - no queue 'q'"), SECURE, ours.NotFound, ("no queue 'q'",)),
    (P.ChannelClosedByBroker(405, "RESOURCE_LOCKED - x"), SECURE, ours.TopologyConflict, ("another connection",)),
    (
        P.ChannelClosedByBroker(406, "PRECONDITION_FAILED - inequivalent arg"),
        SECURE,
        ours.TopologyConflict,
        ("other properties",),
    ),
    (
        P.ChannelClosedByBroker(406, "delivery acknowledgement on channel 1 timed out"),
        SECURE,
        ours.ConnectionLost,
        ("consumer_timeout",),
    ),
    (
        P.ChannelClosedByBroker(406, "message size 9 is larger than configured max size 1"),
        SECURE,
        ours.PublishFailed,
        ("too large",),
    ),
    (P.ChannelClosedByBroker(406, "unknown delivery tag 3"), SECURE, ours.RabbitMQSparkError, ("acknowledged twice",)),
    (P.ChannelClosedByBroker(312, "NO_ROUTE"), SECURE, ours.Unroutable, ("No queue",)),
    (P.ChannelClosedByBroker(540, "NOT_IMPLEMENTED"), SECURE, ours.RabbitMQSparkError, ("wrong request",)),
    (P.ConsumerCancelled(), SECURE, ours.NotFound, ("ended the consumer",)),
    (P.UnroutableError([]), SECURE, ours.Unroutable, ("No queue is bound",)),
    (P.NackError([]), SECURE, ours.Rejected, ("refused the message",)),
    (P.ShortStringTooLong("x" * 256), SECURE, ours.ConfigurationError, ("255 bytes",)),
    (KeyError("x"), SECURE, ours.RabbitMQSparkError, ("KeyError",)),
]


@pytest.mark.parametrize(("error", "endpoint", "kind", "words"), LATER)
def test_later(error, endpoint, kind, words):
    explained = explain(error, endpoint)
    assert type(explained) is kind
    for word in (*words, "broker.example"):
        assert word in str(explained)
    assert PASSWORD not in str(explained)


def test_a_plain_connection_to_a_tls_port(monkeypatch):
    monkeypatch.setattr(probe, "speaks_tls", lambda *_: True)
    for error in (P.IncompatibleProtocolError("x"), TimeoutError()):
        explained = explain(error, PLAIN)
        assert type(explained) is ours.ProtocolMismatch
        assert "speaks TLS" in str(explained)
        assert "amqps://" in str(explained)


def test_an_alert_that_pika_lost_is_asked_for_again(monkeypatch):
    monkeypatch.setattr(probe, "complaint", lambda *_: ssl_error("TLSV13_ALERT_CERTIFICATE_REQUIRED"))
    explained = explain(P.IncompatibleProtocolError("StreamLostError: EOF"), SECURE)
    assert type(explained) is ours.TLSFailed
    assert "client certificate" in str(explained)


def test_of_several_addresses_the_one_that_came_furthest_is_told():
    refused = workflow.AMQPConnectorSocketConnectError(ConnectionRefusedError(errno.ECONNREFUSED, "x"))
    untrusted = workflow.AMQPConnectorTransportSetupError(certificate_error(19, "self-signed"))
    for order in ([refused, untrusted], [untrusted, refused]):
        assert type(explain(workflow.AMQPConnectionWorkflowFailed(order), SECURE)) is ours.TLSFailed


def test_the_host_is_named_when_it_is_known():
    two = Endpoint.from_uri("amqps://u:p@one,two")
    assert "u@two:5671/" in str(explain(ConnectionRefusedError(errno.ECONNREFUSED, "x"), two, host=("two", 5671)))
    assert "one:5671,two:5671" in str(explain(P.StreamLostError("x"), two))


def test_our_own_errors_pass():
    error = ours.Unroutable("x")
    assert explain(error, PLAIN) is error


def test_an_open_connections_end_is_never_probed(monkeypatch):
    def fail(*_):
        raise AssertionError("looked at the port")

    for name in ("complaint", "certificate_names", "handshake", "speaks_tls"):
        monkeypatch.setattr(probe, name, fail)
    monkeypatch.setattr(probe, "speaks_tls", fail)
    for error in (
        P.StreamLostError("x"),
        P.AMQPHeartbeatTimeout("x"),
        P.ConnectionClosedByBroker(320, "x"),
        P.ChannelClosedByBroker(404, "x"),
    ):
        explain(error, PLAIN)
