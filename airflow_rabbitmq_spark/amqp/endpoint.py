"""Where a broker is and how to get in: the one place that turns a connection into pika's parameters.

The hook, the triggerer's multiplexer, the driver's session and the connection test all build an :class:`Endpoint` and
ask it for parameters, so that what the test says is what a job will meet.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import random
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast
from urllib.parse import quote, urlencode

from airflow_rabbitmq_spark.amqp.credentials import recognise
from airflow_rabbitmq_spark.amqp.options import OPTIONS, PORT, TLS_PORT, OptionError, read_options
from airflow_rabbitmq_spark.amqp.tls import TLS, read_tls
from airflow_rabbitmq_spark.amqp.uri import parse_uri
from airflow_rabbitmq_spark.exceptions import ConfigurationError

if TYPE_CHECKING:
    import ssl
    from collections.abc import Hashable, Iterator, Mapping

    import pika

log = logging.getLogger(__name__)

__all__ = ["TLS", "Endpoint"]

#: Makes ``key()`` useless to anybody who finds one in a log and would guess passwords against it.
_KEY_SALT = secrets.token_bytes(32)

_TLS_OPTIONS = tuple(option.name for option in OPTIONS.values() if option.group == "TLS" and option.name != "tls")

#: Fields of Endpoint that are options of the same name, kept as they were read.
_PLAIN_FIELDS = (
    "sasl_mechanism",
    "heartbeat",
    "connection_timeout",
    "blocked_connection_timeout",
    "attempts",
    "delay",
    "frame_max",
    "max_message_bytes",
    "exchange",
    "queue_type",
    "retention",
    "management_url",
    "connection_name",
)


@dataclass(frozen=True, repr=False)
class Endpoint:
    """A broker, who we are there, and how patient to be. Immutable; holds secrets, and shows none.

    Make one with :meth:`from_uri`, :meth:`from_mapping` or :meth:`from_credentials`: they check what is given.
    The options are described in ``amqp/options.py``; all times are in seconds, sizes in bytes.

    :param hosts: tried in this order.
    :param tls: ``None`` for plain AMQP.
    """

    hosts: tuple[tuple[str, int], ...]
    virtual_host: str = "/"
    username: str = "guest"
    password: str = "guest"  # noqa: S105 - RabbitMQ's own default, which it takes from loopback only
    tls: TLS | None = None
    sasl_mechanism: str = "PLAIN"
    heartbeat: int = 10
    connection_timeout: float = 15.0
    blocked_connection_timeout: float = 60.0
    attempts: int = 3
    delay: float = 1.0
    frame_max: int = 131072
    max_message_bytes: int = 16 * 2**20
    exchange: str = "airflow.spark"
    queue_type: str = "classic"
    retention: int = 7 * 24 * 60 * 60
    management_url: str | None = None
    connection_name: str | None = None

    # Making one -----------------------------------------------------------------------------------------------------

    @classmethod
    def from_uri(cls, uri: str, *, where: str = "the URI", **options: object) -> Endpoint:
        """From ``amqps://user:password@host:port/vhost?option=value``, with several hosts separated by commas.

        As AMQP has it, ``amqps://host`` means the virtual host ``/`` and ``amqps://host/`` the one with the empty
        name; reserved characters are percent-encoded, though the virtual host may also be written plainly.

        :param where: where the URI was set, for errors.
        :param options: further options, as :meth:`from_mapping` takes them.
        :raises ConfigurationError: the URI or an option is wrong. Nothing was tried.
        """
        mapping = parse_uri(uri, where=where)
        for name, value in options.items():
            if name in mapping and value is not None:
                raise ConfigurationError(
                    f"{where}: option `{name}` is set twice, in the URI and beside it; remove one."
                )
            mapping[name] = value
        return cls.from_mapping(mapping, where=where)

    @classmethod
    def from_credentials(
        cls, credentials: str | Mapping[str, object], *, where: str = "the credentials", **options: object
    ) -> Endpoint:
        """From the credential document of a cloud service (``amqp/credentials.py`` lists those it knows).

        :param credentials: its JSON as text or read, or the path of its file.
        :raises ConfigurationError: the document is not recognised, or an option is wrong.
        """
        return cls.from_mapping({**options, "credentials_secret": credentials}, where=where)

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, object], *, where: str = "the RabbitMQ connection") -> Endpoint:
        """From options by name. What is ``None`` or empty text counts as not set.

        :param where: where the options were set, for errors: ``connection 'rabbitmq_default'``.
        :raises ConfigurationError: an option is unknown or wrong, or two contradict each other. Nothing was tried.
        """
        values = read_options(mapping, where=where)
        try:
            values = _with_credentials(values, where)
            use_tls = _use_tls(values)
            username, password = _user(values)
            return cls(
                hosts=_hosts(values, tls=use_tls),
                virtual_host=str(values.get("virtual_host", "/")),
                username=username,
                password=password,
                tls=_tls(values, use_tls=use_tls),
                **{name: values[name] for name in _PLAIN_FIELDS if name in values},  # type: ignore[arg-type]
            )
        except OptionError as error:
            raise ConfigurationError(f"{where}: {error}.") from None

    # Taking it elsewhere --------------------------------------------------------------------------------------------

    def to_mapping(self) -> dict[str, object]:
        """Everything as JSON values, **secrets included**: ``from_mapping(to_mapping()) == self``, on any machine."""
        mapping: dict[str, object] = {
            "hosts": [_host_port(host, port) for host, port in self.hosts],
            "virtual_host": self.virtual_host,
            "tls": self.tls is not None,
        }
        if self.sasl_mechanism == "PLAIN":
            mapping |= {"username": self.username, "password": self.password}
        for name in _PLAIN_FIELDS:
            if (value := getattr(self, name)) != OPTIONS[name].default:
                mapping[name] = value
        if self.tls is not None:
            given = {
                "ca_certificate": self.tls.ca,
                "client_certificate": self.tls.certificate,
                "private_key": self.tls.private_key,
                "private_key_passphrase": self.tls.passphrase,
                "server_name": self.tls.server_name,
                "check_hostname": self.tls.check_hostname,
                "verify": self.tls.verify,
                "minimum_tls_version": self.tls.minimum_version,
            }
            mapping |= {name: value for name, value in given.items() if value != OPTIONS[name].default}
        return mapping

    def to_uri(self) -> str:
        """The URI, **secrets included**: ``from_uri(to_uri()) == self``."""
        options = self.to_mapping()
        for name in ("hosts", "virtual_host", "tls", "username", "password"):
            options.pop(name, None)
        user = ""
        if self.sasl_mechanism == "PLAIN":
            user = f"{quote(self.username, safe='')}:{quote(self.password, safe='')}@"
        query = urlencode({name: str(value) for name, value in options.items()}, quote_via=quote)
        return (
            f"{self._scheme}://{user}{self._hosts_text()}/{quote(self.virtual_host, safe='')}"
            f"{'?' if query else ''}{query}"
        )

    # Using it -------------------------------------------------------------------------------------------------------

    def parameters(self, *, connection_name: str | None = None) -> list[pika.ConnectionParameters]:
        """Pika's parameters, one for each host, in the order to try them.

        Each stands for one attempt: who connects tries the list, then :meth:`pauses` between rounds of it. Pika's own
        retrying is left off, since it insists on the first host before it looks at the second.

        :param connection_name: shown in the broker's list of connections; replaces the endpoint's own.
        :raises ConfigurationError: the certificates cannot be used.
        """
        import pika
        from pika.credentials import ExternalCredentials, PlainCredentials

        context = self.ssl_context()
        credentials: PlainCredentials | ExternalCredentials
        if self.sasl_mechanism == "EXTERNAL":
            credentials = ExternalCredentials()
        else:
            credentials = PlainCredentials(self.username, self.password)
        name = connection_name or self.connection_name
        return [
            pika.ConnectionParameters(
                host=host,
                port=port,
                virtual_host=self.virtual_host,
                credentials=credentials,
                ssl_options=None
                if context is None or self.tls is None
                else pika.SSLOptions(context, self.tls.server_name or host),
                heartbeat=self.heartbeat,
                socket_timeout=self.connection_timeout,
                stack_timeout=self.connection_timeout,
                blocked_connection_timeout=self.blocked_connection_timeout,
                frame_max=self.frame_max,
                client_properties={"connection_name": name} if name else None,
            )
            for host, port in self.hosts
        ]

    def pauses(self) -> Iterator[float]:
        """Seconds to wait between the rounds of attempts: ``attempts - 1`` times ``delay``, give or take half.

        By chance, so that a hundred tasks that lost one broker do not all come back in the same instant.
        """
        for _ in range(self.attempts - 1):
            yield self.delay * random.uniform(0.5, 1.5)  # noqa: S311 - spreads load, protects nothing

    def ssl_context(self) -> ssl.SSLContext | None:
        """The TLS context, or ``None`` for plain AMQP. Checks that are switched off are warned about.

        :raises ConfigurationError: the certificates cannot be used.
        """
        if self.tls is None:
            return None
        if not self.tls.verify:
            log.warning(
                "Certificates are not verified for %s (verify=false): anybody on the way can read and change what is "
                "sent, the password included. Set ca_certificate instead.",
                self.describe(),
            )
        elif not self.tls.check_hostname:
            log.warning(
                "The host name of %s is not checked (check_hostname=false): any server with a certificate of the same "
                "authority can pose as the broker. Set server_name to the name in its certificate instead.",
                self.describe(),
            )
        return self.tls.context()

    def key(self) -> Hashable:
        """What two endpoints have in common when they may share a connection. Good within one process only."""
        mapping = self.to_mapping()
        mapping.pop("connection_name", None)
        text = repr(sorted(mapping.items())).encode()
        return hmac.new(_KEY_SALT, text, hashlib.sha256).hexdigest()

    def describe(self, host: tuple[str, int] | None = None) -> str:
        """``amqps://user@host:port/vhost``, for messages and logs.

        :param host: the one of several hosts that is meant.
        """
        user = f"{quote(self.username, safe='')}@" if self.username else ""
        hosts = self._hosts_text() if host is None else _host_port(*host)
        return f"{self._scheme}://{user}{hosts}/{quote(self.virtual_host, safe='')}"

    def __repr__(self) -> str:
        return f"<Endpoint {self.describe()}>"

    @property
    def _scheme(self) -> str:
        return "amqp" if self.tls is None else "amqps"

    def _hosts_text(self) -> str:
        return ",".join(_host_port(host, port) for host, port in self.hosts)


def _with_credentials(values: dict[str, object], where: str) -> dict[str, object]:
    """Merge what the credential document says with what is set beside it, which must not say otherwise."""
    document = values.pop("credentials_secret", None)
    if document is None:
        return values
    source = f"{where}, option `credentials`"
    found = read_options(recognise(document, where=source), where=source)
    if values.get("verify") is False or any(name.startswith("ca_certificate") for name in values):
        # What is set beside the document counts, and the document cannot be edited.
        found = {name: value for name, value in found.items() if not name.startswith("ca_certificate")}
    for name, value in values.items():
        if name in found and found[name] != value and name in _IDENTITY:
            raise OptionError(f"option `{name}` is set and the credentials say otherwise: remove one")
    return {**found, **values}


#: What must not differ between a credential document and the fields beside it: it would be guesswork which is meant.
_IDENTITY = frozenset({"scheme", "hosts", "virtual_host", "username", "password", "tls"})


def _use_tls(values: Mapping[str, object]) -> bool:
    scheme, wanted = values.get("scheme"), values.get("tls")
    if scheme == "amqps" and wanted is False:
        raise OptionError("the scheme is amqps, but option `tls` is false: write amqp, or remove the option")
    if scheme == "amqp" and wanted is True:
        raise OptionError("the scheme is amqp, but option `tls` is true: write amqps, or remove the option")
    if scheme is not None:
        return scheme == "amqps"
    if wanted is not None:
        return wanted is True
    # The standard ports say it. Without any port TLS is meant: who wants less must say so.
    default = values.get("port", TLS_PORT)
    ports = {port or default for _, port in _listed(values)}
    if TLS_PORT in ports and len(ports) > 1:
        raise OptionError("one port is 5671 (TLS) and another is not: set option `tls` to true or false")
    return TLS_PORT in ports


def _listed(values: Mapping[str, object]) -> tuple[tuple[str, int | None], ...]:
    hosts = values.get("hosts")
    if not isinstance(hosts, tuple):
        raise OptionError("no host is set: write the broker's host name")
    return hosts


def _hosts(values: Mapping[str, object], *, tls: bool) -> tuple[tuple[str, int], ...]:
    listed = _listed(values)
    default = cast("int", values.get("port", TLS_PORT if tls else PORT))
    if "port" in values and default not in {port or default for _, port in listed}:
        raise OptionError(f"the port is {default}, but every host is written with another one: remove one")
    return tuple((host, default if port is None else port) for host, port in listed)


def _user(values: Mapping[str, object]) -> tuple[str, str]:
    username, password = values.get("username"), values.get("password")
    if values.get("sasl_mechanism") == "EXTERNAL":
        if "client_certificate" not in values:
            raise OptionError(
                "`sasl_mechanism` is EXTERNAL, which needs `client_certificate` and `private_key`: set them"
            )
        if username or password:
            raise OptionError(
                "`sasl_mechanism` is EXTERNAL, which takes the user from the certificate: remove user name and password"
            )
        return "", ""
    if username is None and password is None:
        return "guest", "guest"
    if not username:
        raise OptionError("a password is set without a user name: set both, or `sasl_mechanism` EXTERNAL")
    if password is None:
        raise OptionError("a user name is set without a password: set both")
    return str(username), str(password)


def _tls(values: Mapping[str, object], *, use_tls: bool) -> TLS | None:
    if use_tls:
        return read_tls(values)
    # A form sends every default along; only what differs from it was asked for.
    given = [name for name in _TLS_OPTIONS if values.get(name, OPTIONS[name].default) != OPTIONS[name].default]
    if given:
        raise OptionError(
            f"option `{given[0]}` is for TLS, but the connection is plain AMQP: set option `tls` to true "
            "(in a URI write amqps://), or remove it"
        )
    return None


def _host_port(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
