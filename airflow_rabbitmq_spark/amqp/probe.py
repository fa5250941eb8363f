"""Looks at a port with a bare socket: whether it speaks TLS, what its certificate says, what it complains about.

Nothing here logs in. It serves to explain failures and to describe what a connection test reached.
"""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_rabbitmq_spark.amqp.endpoint import Endpoint

#: What OpenSSL says when what came was no TLS, in contrast to a TLS alert.
_SILENT = ("WRONG_VERSION", "UNKNOWN_PROTOCOL", "EOF", "HTTP_REQUEST", "PACKET_LENGTH", "RECORD_LAYER")


@dataclass(frozen=True)
class Handshake:
    """What was agreed on in a TLS handshake. ``names`` and ``expires`` are empty for an unverified certificate."""

    version: str
    cipher: str
    names: tuple[str, ...]
    expires: datetime | None


def speaks_tls(host: str, port: int, timeout: float) -> bool:
    """Whether a port speaks TLS: it answers a handshake, be it with a complaint. Never raises.

    :param timeout: seconds.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with (
            socket.create_connection((host, port), timeout) as plain,
            context.wrap_socket(plain, server_hostname=host),
        ):
            return True
    except ssl.SSLError as error:
        return not any(word in (error.reason or "EOF") for word in _SILENT)
    except (OSError, ValueError):
        return False


def handshake(endpoint: Endpoint, host: tuple[str, int], timeout: float, *, check_hostname: bool = True) -> Handshake:
    """Shake hands as the endpoint's connections do.

    :param timeout: seconds.
    :param check_hostname: false to learn of a certificate for another host which host that is.
    :raises OSError: no connection, or TLS failed (``ssl.SSLError``).
    """
    with _connect(endpoint, host, timeout, check_hostname=check_hostname) as stream:
        certificate: dict[str, Any] = stream.getpeercert() or {}
        names = [str(value) for kind, value in certificate.get("subjectAltName", ()) if kind in {"DNS", "IP Address"}]
        not_after = certificate.get("notAfter")
        cipher = stream.cipher()
        return Handshake(
            version=stream.version() or "TLS",
            cipher=cipher[0] if cipher else "unknown",
            names=tuple(names),
            expires=datetime.fromtimestamp(ssl.cert_time_to_seconds(str(not_after)), timezone.utc)
            if not_after
            else None,
        )


def certificate_names(endpoint: Endpoint, host: tuple[str, int], timeout: float) -> tuple[str, ...]:
    """The names in a certificate that is good except for the host; empty when it cannot be had. Never raises."""
    try:
        return handshake(endpoint, host, timeout, check_hostname=False).names
    except (OSError, ValueError):
        return ()


def complaint(endpoint: Endpoint, host: tuple[str, int], timeout: float) -> ssl.SSLError | None:
    """What the server has against us after a TLS handshake that succeeded on our side. Never raises.

    With TLS 1.3 a server looks at our certificate when we think we are through. Whoever writes then gets a broken
    pipe; whoever only reads gets the alert.
    """
    try:
        with _connect(endpoint, host, timeout) as stream:
            stream.recv(1)
    except ssl.SSLError as error:
        return None if "EOF" in (error.reason or "EOF") else error
    except (OSError, ValueError):
        return None
    return None


def _connect(
    endpoint: Endpoint, host: tuple[str, int], timeout: float, *, check_hostname: bool = True
) -> ssl.SSLSocket:
    if endpoint.tls is None:
        raise ValueError("plain AMQP has no handshake")
    context = endpoint.tls.context()
    context.check_hostname = context.check_hostname and check_hostname
    plain = socket.create_connection(host, timeout)
    try:
        return context.wrap_socket(plain, server_hostname=endpoint.tls.server_name or host[0])
    except BaseException:
        plain.close()
        raise
