"""What a failure means and what to do about it: from pika's, OpenSSL's and the socket's errors to ours.

Every message names the step that failed, the endpoint, the likely cause and what to change. None holds a secret.

Pika throws away much of what it learns: a refused login is a ``ProbableAuthenticationError`` around the text of
another error. So texts are read here too, and where even they say nothing (an end-of-file after a TLS alert was lost)
the port is looked at once more with a bare socket.
"""

from __future__ import annotations

import asyncio
import errno
import re
import socket
import ssl
from typing import TYPE_CHECKING

from pika import exceptions as pika_errors
from pika.adapters.utils import connection_workflow as workflow

from airflow_rabbitmq_spark.amqp import probe
from airflow_rabbitmq_spark.exceptions import (
    AccessRefused,
    AuthenticationFailed,
    BrokerBlocked,
    BrokerUnreachable,
    ConfigurationError,
    ConnectionFailed,
    ConnectionLost,
    HostNotFound,
    NotFound,
    ProtocolMismatch,
    PublishFailed,
    RabbitMQSparkError,
    Rejected,
    TLSFailed,
    TopologyConflict,
    Unroutable,
    VirtualHostRefused,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_rabbitmq_spark.amqp.endpoint import Endpoint

probe_tls = probe.speaks_tls

#: How far each step of connecting comes, so that of several failures (one per address) the furthest is told.
_STEPS = ("lookup", "tcp", "tls", "protocol", "authentication", "vhost", "open")

#: Seconds for one look at a port. Short, since it comes on top of an attempt that has failed.
_PROBE_TIMEOUT = 3.0


def explain(error: BaseException, endpoint: Endpoint, *, host: tuple[str, int] | None = None) -> RabbitMQSparkError:
    """The one of this package's errors that ``error`` amounts to, with a message that says what to do.

    May take a look at the port after a failed attempt to connect, which blocks for some seconds at the most; never
    for an error of a connection that was open.

    :param error: what pika, ``ssl`` or ``socket`` raised, at connect or later.
    :param endpoint: where it happened.
    :param host: the one of the endpoint's hosts that it happened at.
    :return: a new error, or ``error`` itself if it is one of ours.
    """
    if isinstance(error, RabbitMQSparkError):
        return error
    if isinstance(error, workflow.AMQPConnectionWorkflowFailed) and error.exceptions:
        candidates = [explain(inner, endpoint, host=host) for inner in error.exceptions]
        return max(candidates, key=_step)
    if isinstance(error, workflow.AMQPConnectorPhaseErrorBase):
        return explain(error.exception, endpoint, host=host)
    if type(error) is pika_errors.AMQPConnectionError and error.args and isinstance(error.args[0], BaseException):
        return explain(error.args[0], endpoint, host=host)
    place = _Place(endpoint, host)
    for kind in type(error).__mro__:
        if kind in EXPLANATIONS:
            return EXPLANATIONS[kind](error, place)
    return RabbitMQSparkError(f"{place}: {type(error).__name__}: {error}")


def _step(error: RabbitMQSparkError) -> int:
    return _STEPS.index(error.step) if isinstance(error, ConnectionFailed) else len(_STEPS)


class _Place:
    """Where it happened."""

    def __init__(self, endpoint: Endpoint, host: tuple[str, int] | None) -> None:
        self.endpoint = endpoint
        self._known = host
        self.host = host or endpoint.hosts[0]

    def __str__(self) -> str:
        return self.endpoint.describe(self._known)

    @property
    def timeout(self) -> float:
        return min(_PROBE_TIMEOUT, self.endpoint.connection_timeout)


def _text(error: BaseException) -> str:
    """What the other side said, without Python's wrapping."""
    if isinstance(error, (pika_errors.ConnectionClosed, pika_errors.ChannelClosed)):
        return f"{error.reply_code} {error.reply_text.rstrip('.')}"
    return " ".join(str(arg) for arg in error.args) or type(error).__name__


def _code(error: BaseException) -> int | None:
    """AMQP's reply code, also out of the text in which pika's guesses wrap it."""
    code = getattr(error, "reply_code", None)
    if isinstance(code, int):
        return code
    found = re.search(r"ConnectionClosedByBroker: \((\d{3})\)", _text(error))
    return int(found[1]) if found else None


# Reaching the host ---------------------------------------------------------------------------------------------------


def _lookup(error: BaseException, place: _Place) -> RabbitMQSparkError:
    again = getattr(error, "errno", None) == socket.EAI_AGAIN
    cause = "the name server does not answer" if again else "no such name is known here"
    return HostNotFound(
        f"Name lookup of host {place.host[0]!r} failed for {place}: {cause}. Check the spelling of the host in the "
        "connection, and that this machine's network resolves it."
    )


def _timed_out(_error: BaseException, place: _Place) -> RabbitMQSparkError:
    seconds = place.endpoint.connection_timeout
    if place.endpoint.tls is None and probe_tls(*place.host, place.timeout):
        return _plain_to_tls(place)
    return BrokerUnreachable(
        f"No answer from {place} within {seconds:g} s. Either a firewall drops the packets, or something accepts "
        "connections there and then says nothing (a load balancer without a broker behind it, a broker that is "
        "starting or out of memory). Check host and port, or raise `connection_timeout`."
    )


def _os_error(error: BaseException, place: _Place) -> RabbitMQSparkError:
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
    reason = getattr(error, "strerror", None) or _text(error)
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


def _certificate(error: BaseException, place: _Place) -> RabbitMQSparkError:
    tls, code = place.endpoint.tls, getattr(error, "verify_code", 0)
    message = str(getattr(error, "verify_message", "")).rstrip(".") or _text(error)
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


def _ssl(error: BaseException, place: _Place) -> RabbitMQSparkError:
    in_text = re.search(r"\[SSL: (\w+)\]", _text(error))
    reason = str(in_text[1] if in_text else getattr(error, "reason", None) or _text(error)).upper().replace(" ", "_")
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


def _plain_to_tls(place: _Place) -> RabbitMQSparkError:
    return ProtocolMismatch(
        f"AMQP handshake with {place} failed: port {place.host[1]} speaks TLS and the connection is plain. Switch "
        "option `tls` on (in a URI write amqps://), and set `ca_certificate` if the authority is your own."
    )


def _incompatible(error: BaseException, place: _Place) -> RabbitMQSparkError:
    if place.endpoint.tls is None:
        if probe_tls(*place.host, place.timeout):
            return _plain_to_tls(place)
        return _hung_up(place)
    # TLS 1.3 brings the server's complaint about our certificate after the handshake, where pika may lose it.
    if re.search(r"ALERT|CERTIFICATE", _text(error)):
        return _ssl(ssl.SSLError(1, _text(error)), place)
    complaint = probe.complaint(place.endpoint, place.host, place.timeout)
    if complaint is not None:
        return _ssl(complaint, place)
    return _hung_up(place)


def _hung_up(place: _Place) -> RabbitMQSparkError:
    # Not a ProtocolMismatch, which waiting does not cure: a broker that stops looks just like this.
    return BrokerUnreachable(
        f"AMQP handshake with {place} failed: whatever listens on port {place.host[1]} hung up at the first words. The "
        "broker is starting or stopping; or, if it stays so, it is no RabbitMQ (usual ports: 5671 for TLS, 5672)."
    )


def _aborted(error: BaseException, place: _Place) -> RabbitMQSparkError:
    if "Timeout" in _text(error):
        return _timed_out(error, place)
    return ConnectionLost(f"The attempt to connect to {place} was given up on this side.")


def _mechanism(error: BaseException, place: _Place) -> RabbitMQSparkError:
    mechanism = error.args[0] if error.args else place.endpoint.sasl_mechanism
    remedy = (
        "Enable the plugin rabbitmq_auth_mechanism_ssl and list EXTERNAL under auth_mechanisms on the broker"
        if mechanism == "EXTERNAL"
        else "Set option `sasl_mechanism` to EXTERNAL with a client certificate, or allow PLAIN on the broker"
    )
    return AuthenticationFailed(f"Login at {place} failed: the broker does not offer mechanism {mechanism}. {remedy}.")


def _login(error: BaseException, place: _Place) -> RabbitMQSparkError:
    code = _code(error)
    if code != 403:
        return _lost_in_login(error, place)
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


def _vhost(error: BaseException, place: _Place) -> RabbitMQSparkError:
    text, name, user = _text(error), place.endpoint.virtual_host, place.endpoint.username
    code = _code(error)
    if code not in {403, 530}:
        return _lost_in_login(error, place)
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


def _lost_in_login(error: BaseException, place: _Place) -> RabbitMQSparkError:
    return BrokerUnreachable(
        f"Login at {place} was cut off ({_text(error)}): the broker is starting or stopping, or the network cut it."
    )


# After it was open ---------------------------------------------------------------------------------------------------


def _lost(error: BaseException, place: _Place) -> RabbitMQSparkError:
    return ConnectionLost(
        f"The connection to {place} was lost ({_text(error)}): the broker stopped, or the network cut it."
    )


def _heartbeat(_error: BaseException, place: _Place) -> RabbitMQSparkError:
    return ConnectionLost(
        f"The connection to {place} was lost: no heartbeat within twice {place.endpoint.heartbeat} s. The network is cut "
        "or the broker is overloaded; raise option `heartbeat` if it is merely slow."
    )


def _blocked(_error: BaseException, place: _Place) -> RabbitMQSparkError:
    return BrokerBlocked(
        f"{place} has taken no messages for {place.endpoint.blocked_connection_timeout:g} s because of a memory or disk "
        "alarm. Free memory or disk on the broker (rabbitmqctl status names the alarm), or raise option "
        "`blocked_connection_timeout`."
    )


def _closed_here(_error: BaseException, place: _Place) -> RabbitMQSparkError:
    return ConnectionLost(f"The connection to {place} is closed.")


def _connection_closed(error: BaseException, place: _Place) -> RabbitMQSparkError:
    code, text = _code(error), _text(error)
    if code in {320, 541, None}:  # forced: shutdown, closed by an operator, vhost gone or down; or an internal error
        return ConnectionLost(f"{place} closed the connection: {text}. It is stopping, or an operator closed it.")
    if code == 403:
        return _access_refused(text, place)
    if code == 501 and "frame" in text.lower():
        return ConnectionFailed(f"{place} closed the connection: {text}. Lower option `frame_max`.")
    return ConnectionFailed(f"{place} closed the connection because of a wrong request: {text}.")


def _access_refused(text: str, place: _Place) -> RabbitMQSparkError:
    endpoint = place.endpoint
    if "exclusive use" in text:
        return AccessRefused(f"Another consumer has this queue for itself ({text}) at {place}.")
    if "reserved prefix" in text:
        return AccessRefused(f"Names that start with 'amq.' belong to the broker ({text}) at {place}.")
    return AccessRefused(
        f"User {endpoint.username!r} may not do this at {place}: {text}. Grant it with: rabbitmqctl set_permissions -p "
        f"'{endpoint.virtual_host}' '{endpoint.username}' CONFIGURE WRITE READ, each a pattern such as "
        "'^airflow\\.spark'."
    )


def _channel_closed(error: BaseException, place: _Place) -> RabbitMQSparkError:
    code, text = _code(error), _text(error)
    if code == 403:
        return _access_refused(text, place)
    if code == 404:
        return NotFound(f"There is no such queue or exchange at {place}: {text}. Declare it, or correct its name.")
    if code == 405:
        return TopologyConflict(f"The queue belongs to another connection alone, at {place}: {text}.")
    if code == 406 and "timed out" in text:
        return ConnectionLost(
            f"{place} closed the channel because a message was held unacknowledged for longer than its "
            f"consumer_timeout: {text}. Acknowledge sooner, or raise consumer_timeout on the broker."
        )
    if code == 406 and "size" in text:
        return PublishFailed(f"{place} refuses the message as too large: {text}. Its limit is max_message_size.")
    if code == 406 and "unknown delivery tag" in text:
        return RabbitMQSparkError(f"A message was acknowledged twice, or on another channel, at {place}: {text}.")
    if code == 406:
        return TopologyConflict(
            f"The queue or exchange exists at {place} with other properties, or is in use: {text}. Delete it, or "
            "declare it as it is."
        )
    if code in {312, 313}:  # no-route, no-consumers
        return Unroutable(f"No queue took the message at {place}: {text}.")
    return RabbitMQSparkError(f"{place} closed the channel because of a wrong request: {text}.")


def _consumer_cancelled(_error: BaseException, place: _Place) -> RabbitMQSparkError:
    return NotFound(f"{place} ended the consumer: its queue was deleted or expired, or its node is down.")


def _unroutable(error: BaseException, place: _Place) -> RabbitMQSparkError:
    return Unroutable(
        f"No queue is bound for the message at {place}: {_text(error)}. Declare and bind the queue first."
    )


def _rejected(error: BaseException, place: _Place) -> RabbitMQSparkError:
    return Rejected(f"{place} refused the message: {_text(error)}. A queue is full, or its node is down.")


def _broken(error: BaseException, place: _Place) -> RabbitMQSparkError:
    return ProtocolMismatch(
        f"What came from {place} is not AMQP 0-9-1 ({type(error).__name__}: {_text(error)}). Check that the port is the "
        "broker's and that no proxy changes the data."
    )


def _unencodable(error: BaseException, place: _Place) -> RabbitMQSparkError:
    return ConfigurationError(
        f"AMQP cannot carry a name or header that was to be sent to {place} ({type(error).__name__}: {_text(error)}). "
        "Names are at most 255 bytes; headers hold text, numbers, booleans, times, lists and mappings."
    )


def _misuse(error: BaseException, place: _Place) -> RabbitMQSparkError:
    return RabbitMQSparkError(f"The connection to {place} was used wrongly: {type(error).__name__}: {_text(error)}.")


#: Every class of ``pika.exceptions`` and what pika passes through, and its explanation. A class not listed is
#: explained as its nearest listed base; a test holds this list against pika's.
EXPLANATIONS: dict[type[BaseException], Callable[[BaseException, _Place], RabbitMQSparkError]] = {
    socket.gaierror: _lookup,
    TimeoutError: _timed_out,
    asyncio.TimeoutError: _timed_out,  # the same from Python 3.11 on
    OSError: _os_error,
    ssl.SSLCertVerificationError: _certificate,
    ssl.SSLError: _ssl,
    workflow.AMQPConnectorStackTimeout: _timed_out,
    workflow.AMQPConnectorException: _closed_here,
    pika_errors.AMQPError: _misuse,
    pika_errors.AMQPConnectionError: _lost,
    pika_errors.ConnectionOpenAborted: _aborted,
    pika_errors.StreamLostError: _lost,
    pika_errors.IncompatibleProtocolError: _incompatible,
    pika_errors.AuthenticationError: _mechanism,
    pika_errors.ProbableAuthenticationError: _login,
    pika_errors.ProbableAccessDeniedError: _vhost,
    pika_errors.NoFreeChannels: _misuse,
    pika_errors.ConnectionWrongStateError: _closed_here,
    pika_errors.ConnectionClosed: _connection_closed,
    pika_errors.ConnectionClosedByBroker: _connection_closed,
    pika_errors.ConnectionClosedByClient: _closed_here,
    pika_errors.ConnectionBlockedTimeout: _blocked,
    pika_errors.AMQPHeartbeatTimeout: _heartbeat,
    pika_errors.AMQPChannelError: _misuse,
    pika_errors.ChannelWrongStateError: _closed_here,
    pika_errors.ChannelClosed: _channel_closed,
    pika_errors.ChannelClosedByBroker: _channel_closed,
    pika_errors.ChannelClosedByClient: _closed_here,
    pika_errors.DuplicateConsumerTag: _misuse,
    pika_errors.ConsumerCancelled: _consumer_cancelled,
    pika_errors.UnroutableError: _unroutable,
    pika_errors.NackError: _rejected,
    pika_errors.InvalidChannelNumber: _misuse,
    pika_errors.ProtocolSyntaxError: _broken,
    pika_errors.UnexpectedFrameError: _broken,
    pika_errors.ProtocolVersionMismatch: _broken,
    pika_errors.BodyTooLongError: _broken,
    pika_errors.InvalidFrameError: _broken,
    pika_errors.InvalidFieldTypeException: _broken,
    pika_errors.UnsupportedAMQPFieldException: _unencodable,
    pika_errors.MethodNotImplemented: _misuse,
    pika_errors.ChannelError: _misuse,
    pika_errors.ReentrancyError: _misuse,
    pika_errors.ShortStringTooLong: _unencodable,
    pika_errors.DuplicateGetOkCallback: _misuse,
}
