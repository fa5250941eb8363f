"""What it means that no connection came about: each step, from the name lookup to the virtual host."""

from __future__ import annotations

import errno
import re
import socket
import ssl
from typing import TYPE_CHECKING

from pika import exceptions as pika_errors

from airflow_rabbitmq_spark.amqp import probe
from airflow_rabbitmq_spark.exceptions import (
    AuthenticationFailed,
    BrokerUnreachable,
    ConnectionLost,
    HostNotFound,
    ProtocolMismatch,
    RabbitMQSparkError,
    TLSFailed,
    VirtualHostRefused,
)

if TYPE_CHECKING:
    from airflow_rabbitmq_spark.amqp.endpoint import Endpoint

#: Seconds for one look at a port. Short, since it comes on top of an attempt that has failed.
_PROBE_TIMEOUT = 3.0


class Place:
    """Where it happened."""

    def __init__(self, endpoint: Endpoint, host: tuple[str, int] | None) -> None:
        self.endpoint = endpoint
        self._known = host
        self.host = host or endpoint.hosts[0]

    def __str__(self) -> str:
        return self.endpoint.describe(self._known)

    @property
    def timeout(self) -> float:
        """Seconds for one look at the port."""
        return min(_PROBE_TIMEOUT, self.endpoint.connection_timeout)


def text_of(error: BaseException) -> str:
    """What the other side said, without Python's wrapping."""
    if isinstance(error, (pika_errors.ConnectionClosed, pika_errors.ChannelClosed)):
        return f"{error.reply_code} {error.reply_text.rstrip('.')}"
    return " ".join(str(arg) for arg in error.args) or type(error).__name__


def reply_code(error: BaseException) -> int | None:
    """AMQP's reply code, also out of the text in which pika's guesses wrap it."""
    code = getattr(error, "reply_code", None)
    if isinstance(code, int):
        return code
    found = re.search(r"ConnectionClosedByBroker: \((\d{3})\)", text_of(error))
    return int(found[1]) if found else None


# Reaching the host ---------------------------------------------------------------------------------------------------


def lookup_failed(error: BaseException, place: Place) -> RabbitMQSparkError:
    """The host's name has no address."""
    again = getattr(error, "errno", None) == socket.EAI_AGAIN
    cause = "the name server does not answer" if again else "no such name is known here"
    return HostNotFound(
        f"Name lookup of host {place.host[0]!r} failed for {place}: {cause}. Check the spelling of the host in the "
        "connection, and that this machine's network resolves it."
    )


def timed_out(_error: BaseException, place: Place) -> RabbitMQSparkError:
    """Nobody answered in time."""
    seconds = place.endpoint.connection_timeout
    if place.endpoint.tls is None and probe.speaks_tls(*place.host, place.timeout):
        return plain_to_tls(place)
    return BrokerUnreachable(
        f"No answer from {place} within {seconds:g} s. Either a firewall drops the packets, or something accepts "
        "connections there and then says nothing (a load balancer without a broker behind it, a broker that is "
        "starting or out of memory). Check host and port, or raise `connection_timeout`."
    )


def os_error(error: BaseException, place: Place) -> RabbitMQSparkError:
    """The TCP connection did not come about."""
    number = getattr(error, "errno", None)
    if number == errno.ECONNREFUSED:
        return BrokerUnreachable(
            f"TCP connection to {place} was refused: nothing listens on port {place.host[1]}. Is the broker running? "
            "Its usual ports are 5671 for TLS and 5672 for plain AMQP."
        )
    if number in {errno.ENETUNREACH, errno.EHOSTUNREACH}:
        return BrokerUnreachable(
            f"TCP connection to {place} failed: there is no route to the host. Check the address, VPN and firewall."
        )
    if number in {errno.ECONNRESET, errno.EPIPE, errno.ECONNABORTED}:
        return BrokerUnreachable(
            f"{place} accepted the TCP connection and dropped it at once: the broker is starting or stopping, or a "
            f"proxy or firewall cuts it. Check that port {place.host[1]} is the broker's."
        )
    reason = getattr(error, "strerror", None) or text_of(error)
    return BrokerUnreachable(f"TCP connection to {place} failed: {reason}. Check host, port and network.")


# TLS -----------------------------------------------------------------------------------------------------------------

_TRUST = (
    "Set option `ca_certificate` of the connection to the certificate of the authority that signed the broker's (your "
    "cloud's console offers it for download)"
)

#: OpenSSL's verify codes (X509_V_ERR_...): what is wrong, and what to do.
_VERIFY_CODES = {
    9: ("it is not valid yet", "Check the clocks of this machine and of the broker"),
    10: ("it, or its authority's, has expired", "Renew it on the broker; or renew `ca_certificate` if that is the old"),
    18: ("it is signed by itself", "Set option `ca_certificate` to that very certificate, or to the authority's"),
    19: ("it comes from an authority that is not trusted here", _TRUST),
    20: ("it comes from an authority that is not trusted here", _TRUST),
    21: ("it comes from an authority that is not trusted here", _TRUST),
    23: ("it was revoked", "Renew it on the broker"),
    24: ("its issuer is no certificate authority", _TRUST),
}

_HOST_MISMATCH_CODES = {62, 64}

#: OpenSSL's reason for "what came was not TLS".
_NOT_TLS = (
    "WRONG_VERSION_NUMBER",
    "UNKNOWN_PROTOCOL",
    "HTTP_REQUEST",
    "PACKET_LENGTH_TOO_LONG",
    "RECORD_LAYER_FAILURE",
)

#: What the broker's TLS alert complains about, by a part of OpenSSL's name for it.
_ALERTS = (
    (
        "CERTIFICATE_REQUIRED",
        "the broker wants a client certificate and got none. Set options `client_certificate` and `private_key`",
    ),
    (
        "ALERT_UNKNOWN_CA",
        (
            "the broker does not trust the authority of our client certificate. Use a certificate of an authority in its "
            "`ssl_options.cacertfile`, with the chain in option `client_certificate`"
        ),
    ),
    ("CERTIFICATE_EXPIRED", "our client certificate has expired. Renew options `client_certificate` and `private_key`"),
    ("CERTIFICATE_REVOKED", "our client certificate was revoked. Renew `client_certificate` and `private_key`"),
    ("CERTIFICATE_UNKNOWN", "the broker does not accept our client certificate. Check option `client_certificate`"),
    ("BAD_CERTIFICATE", "the broker does not accept our client certificate. Check option `client_certificate`"),
    (
        "PROTOCOL_VERSION",
        (
            "the broker does not speak the TLS version that is asked for. Lower option `minimum_tls_version`, or enable "
            "the newer version on the broker"
        ),
    ),
    ("UNSUPPORTED_PROTOCOL", "the broker offers only TLS versions older than option `minimum_tls_version`"),
    (
        "HANDSHAKE_FAILURE",
        (
            "the two have no cipher or version in common, or the broker wants a client certificate (options "
            "`client_certificate` and `private_key`)"
        ),
    ),
    ("UNRECOGNIZED_NAME", "the server does not know the name we ask for. Set option `server_name`"),
)


def certificate_refused(error: BaseException, place: Place) -> RabbitMQSparkError:
    """We do not trust the broker's certificate."""
    tls, code = place.endpoint.tls, getattr(error, "verify_code", 0)
    message = str(getattr(error, "verify_message", "")).rstrip(".") or text_of(error)
    wanted = (tls.server_name if tls else None) or place.host[0]
    if code in _HOST_MISMATCH_CODES:
        names = probe.certificate_names(place.endpoint, place.host, place.timeout)
        shown = f"; it is for {', '.join(names)}" if names else ""
        cause = f"it is not for {wanted!r}{shown}"
        remedy = "Write the host as the certificate has it, or set option `server_name` to a name in the certificate"
    else:
        cause, remedy = _VERIFY_CODES.get(code, (message, _TRUST))
        if remedy is _TRUST and tls is not None and tls.ca is not None:
            cause = "it does not come from an authority in option `ca_certificate`"
            remedy = "Replace `ca_certificate` by the certificate of the authority that signed the broker's"
    return TLSFailed(
        f"TLS handshake with {place} failed: the broker's certificate is refused: {cause} ({message}). {remedy}."
    )


def tls_failed(error: BaseException, place: Place) -> RabbitMQSparkError:
    """The TLS handshake failed for another reason than the broker's certificate."""
    in_text = re.search(r"\[SSL: (\w+)\]", text_of(error))
    reason = str(in_text[1] if in_text else getattr(error, "reason", None) or text_of(error)).upper().replace(" ", "_")
    if any(word in reason for word in _NOT_TLS):
        return ProtocolMismatch(
            f"TLS handshake with {place} failed: port {place.host[1]} does not speak TLS. Use the broker's TLS port, "
            "mostly 5671; or, if the connection is to be plain, switch option `tls` off (in a URI write amqp://)."
        )
    if "EOF" in reason:
        return BrokerUnreachable(
            f"TLS handshake with {place} failed: the other side hung up in the middle of it. The broker, or the load "
            "balancer before it, is starting or stopping; if it stays so, check that this is the broker's TLS port, and "
            "whether it asks for a certain `server_name`."
        )
    for word, cause in _ALERTS:
        if word in reason:
            return TLSFailed(f"TLS handshake with {place} failed: {cause} ({reason}).")
    return TLSFailed(
        f"TLS handshake with {place} failed: {reason}. Check that port {place.host[1]} is the broker's TLS port, and "
        "the options `ca_certificate` and `minimum_tls_version`."
    )


# The AMQP handshake --------------------------------------------------------------------------------------------------


def plain_to_tls(place: Place) -> RabbitMQSparkError:
    """Plain AMQP was spoken to a TLS port."""
    return ProtocolMismatch(
        f"AMQP handshake with {place} failed: port {place.host[1]} speaks TLS and the connection is plain. Switch "
        "option `tls` on (in a URI write amqps://), and set `ca_certificate` if the authority is your own."
    )


def incompatible(error: BaseException, place: Place) -> RabbitMQSparkError:
    """The other side hung up at the first words: pika takes that for another protocol."""
    if place.endpoint.tls is None:
        if probe.speaks_tls(*place.host, place.timeout):
            return plain_to_tls(place)
        return hung_up(place)
    # TLS 1.3 brings the server's complaint about our certificate after the handshake, where pika may lose it.
    if re.search(r"ALERT|CERTIFICATE", text_of(error)):
        return tls_failed(ssl.SSLError(1, text_of(error)), place)
    complaint = probe.complaint(place.endpoint, place.host, place.timeout)
    if complaint is not None:
        return tls_failed(complaint, place)
    return hung_up(place)


def hung_up(place: Place) -> RabbitMQSparkError:
    """The other side hung up at the first words, and nobody knows why."""
    # Not a ProtocolMismatch, which waiting does not cure: a broker that stops looks just like this.
    return BrokerUnreachable(
        f"AMQP handshake with {place} failed: whatever listens on port {place.host[1]} hung up at the first words. The "
        "broker is starting or stopping; or, if it stays so, it is no RabbitMQ (usual ports: 5671 for TLS, 5672)."
    )


def aborted(error: BaseException, place: Place) -> RabbitMQSparkError:
    """Pika gave up an attempt, mostly at its timeout."""
    if "Timeout" in text_of(error):
        return timed_out(error, place)
    return ConnectionLost(f"The attempt to connect to {place} was given up on this side.")


def mechanism_missing(error: BaseException, place: Place) -> RabbitMQSparkError:
    """The broker does not offer our way to log in."""
    mechanism = error.args[0] if error.args else place.endpoint.sasl_mechanism
    remedy = (
        "Enable the plugin rabbitmq_auth_mechanism_ssl and list EXTERNAL under auth_mechanisms on the broker"
        if mechanism == "EXTERNAL"
        else "Set option `sasl_mechanism` to EXTERNAL with a client certificate, or allow PLAIN on the broker"
    )
    return AuthenticationFailed(f"Login at {place} failed: the broker does not offer mechanism {mechanism}. {remedy}.")


def login_refused(error: BaseException, place: Place) -> RabbitMQSparkError:
    """The login was refused, or cut off."""
    code = reply_code(error)
    if code != 403:
        return lost_in_login(error, place)
    user = place.endpoint.username
    if place.endpoint.sasl_mechanism == "EXTERNAL":
        remedy = "The broker knows no user of the name in the client certificate (see its ssl_cert_login_from)"
    elif user == "guest":
        remedy = "RabbitMQ lets 'guest' in from its own machine only: set Login and Password of the connection"
    else:
        remedy = (
            "Check Login and Password of the connection; characters such as @ : / % must be percent-encoded in a URI"
        )
    return AuthenticationFailed(f"Login at {place} was refused for user {user!r}. {remedy}.")


def virtual_host_refused(error: BaseException, place: Place) -> RabbitMQSparkError:
    """The virtual host was refused, or the connection cut off at that step."""
    text, name, user = text_of(error), place.endpoint.virtual_host, place.endpoint.username
    code = reply_code(error)
    if code not in {403, 530}:
        return lost_in_login(error, place)
    if "limit" in text:
        # Passes by itself, since connections that died count until the broker notices.
        return BrokerUnreachable(
            f"{place} takes no more connections: the limit for user {user!r} or virtual host {name!r} is reached. Close "
            "some, or raise it with rabbitmqctl set_user_limits or set_vhost_limits."
        )
    if "not found" in text:
        hint = " In a URI, the part after the host is the virtual host and '/' is written %2F." if name != "/" else ""
        return VirtualHostRefused(
            f"{place} has no virtual host {name!r}. Correct the virtual host of the connection (in a form the field Virtual host), or make "
            f"it with: rabbitmqctl add_vhost '{name}'.{hint}"
        )
    return VirtualHostRefused(
        f"{place} gives user {user!r} no access to virtual host {name!r}. Correct the virtual host of the connection, "
        f"or grant it with: rabbitmqctl set_permissions -p '{name}' '{user}' '^airflow\\.spark' '^airflow\\.spark' "
        "'^airflow\\.spark'"
    )


def lost_in_login(error: BaseException, place: Place) -> RabbitMQSparkError:
    """The connection was gone before the broker had answered the login."""
    return BrokerUnreachable(
        f"Login at {place} was cut off ({text_of(error)}): the broker is starting or stopping, or the network cut it."
    )
