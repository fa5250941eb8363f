"""Every option of a RabbitMQ connection, in one table: its name, how it is read, its default and what it is for.

The table is what validates a connection, names the nearest option to a misspelt one, and is what the connection form
and ``docs/connection.md`` are checked against.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from airflow_rabbitmq_spark.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

#: Ports that IANA assigned to AMQP and to AMQP over TLS.
PORT, TLS_PORT = 5672, 5671

#: What Airflow's pages and API show in place of a secret.
MASK = "***"

DAY = 24 * 60 * 60

#: AMQP's "short string", which holds virtual hosts, exchange names and routing keys, has one byte for its length.
SHORT_STRING_BYTES = 255


class OptionError(ValueError):
    """A value cannot be what its option needs. The message completes the sentence "Option `x` ..."."""


def shown(value: object) -> str:
    """A value as an error message shows it: quoted and cut."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def text(value: object) -> str:
    """Any text without NUL, which separates user and password on the wire and ends strings in C."""
    if not isinstance(value, str):
        raise OptionError(f"must be text, and is {type(value).__name__}")
    if "\0" in value:
        raise OptionError("holds a NUL character")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise OptionError("holds characters that are not valid Unicode") from None
    return value


def short_text(value: object) -> str:
    """Text that fits AMQP's short string."""
    result = text(value)
    if len(result.encode()) > SHORT_STRING_BYTES:
        raise OptionError(f"is longer than the {SHORT_STRING_BYTES} bytes AMQP allows")
    return result


def name(value: object) -> str:
    """A name that AMQP takes and that the broker has not kept for itself."""
    result = short_text(value)
    if not result:
        raise OptionError("is empty: write a name")
    if result.startswith("amq."):
        raise OptionError(f"is {shown(result)}: names that start with 'amq.' belong to the broker, choose another")
    return result


def boolean(value: object) -> bool:
    """A strict boolean: ``true`` and ``false`` in any case, yes/no, on/off, 1/0. Nothing else is guessed."""
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower() if isinstance(value, (str, int)) else ""
    if word in {"true", "yes", "on", "1"}:
        return True
    if word in {"false", "no", "off", "0"}:
        return False
    raise OptionError(f"is {shown(value)}, which is neither true nor false: write true or false")


def number(low: float, high: float, *, whole: bool = False) -> Callable[[object], float]:
    """A reader of finite numbers from ``low`` to ``high``."""

    def read(value: object) -> float:
        wanted = f"write a {'whole ' if whole else ''}number from {low:g} to {high:.10g}"
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise OptionError(f"is {shown(value)}, which is no number: {wanted}")
        try:
            result = float(value)
        except (ValueError, OverflowError):
            raise OptionError(f"is {shown(value)}, which is no number: {wanted}") from None
        if not math.isfinite(result) or not low <= result <= high:
            raise OptionError(f"is {shown(value)}, which is out of range: {wanted}")
        if whole:
            if not result.is_integer():
                raise OptionError(f"is {shown(value)}, which is not whole: {wanted}")
            return int(result)
        return result

    return read


def choice(*words: str) -> Callable[[object], str]:
    """A reader of one of ``words``, whatever their case."""

    def read(value: object) -> str:
        for word in words:
            if isinstance(value, str) and value.strip().lower() == word.lower():
                return word
        raise OptionError(f"is {shown(value)}: write {' or '.join(words)}")

    return read


def minimum_tls(value: object) -> str:
    """``TLSv1.2`` or ``TLSv1.3``; ``1.2`` and ``1.3`` are understood."""
    version = re.sub(r"(?i)^tls\s*v?\s*", "", str(value).strip())
    if version not in {"1.2", "1.3"}:
        raise OptionError(f"is {shown(value)}: write TLSv1.2 or TLSv1.3 (older versions are broken)")
    return f"TLSv{version}"


def http_address(value: object) -> str:
    """An ``http://`` or ``https://`` address without credentials in it, since links show it."""
    address = text(value).strip()
    if MASK in address:
        raise OptionError(
            f"holds {MASK}: Airflow's page has put that where the address has the same text as a secret. Write it again, "
            "and keep secrets out of it"
        )
    try:
        parts = urlsplit(address)
        valid = parts.scheme in {"http", "https"} and bool(parts.hostname)
        has_user = "@" in parts.netloc
    except ValueError:
        valid, has_user = False, False
    if has_user:
        raise OptionError("holds a user or password, which links would show to everybody: write it without")
    if not valid:
        raise OptionError("is no web address: write one such as https://rabbitmq.example.com:15671")
    return address.rstrip("/")


def split_host(item: str) -> tuple[str, int | None]:
    """``host``, ``host:port``, ``[v6]``, ``[v6]:port`` or a bare IPv6 address."""
    item = item.strip()
    if "@" in item:  # not quoted: what stands before the @ may be a password
        raise OptionError("holds a user or password: write only the host here")
    if item.startswith("["):
        host, bracket, rest = item[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise OptionError(f"has {shown(item)}: write an IPv6 address as [address]:port")
        port = rest[1:]
    elif item.count(":") > 1:
        host, port = item, ""
    else:
        host, _, port = item.partition(":")
    if not host or re.search(r"[\s/@?#\[\]\0]", host):
        raise OptionError(f"has {shown(item)}, which is no host: write host or host:port, several separated by commas")
    if not port:
        return host, None
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 2**16):
        raise OptionError("has a port that is none: write a number from 1 to 65535")
    return host, int(port)


def hosts(value: object) -> tuple[tuple[str, int | None], ...]:
    """One host or several, in the order they are tried: ``h1:5671,h2:5671`` or a list of such."""
    items: list[object] = list(value) if isinstance(value, (list, tuple)) else [value]
    result: list[tuple[str, int | None]] = []
    for item in items:
        if isinstance(item, (list, tuple)) and len(item) == 2:
            host, port = item
            result.append(split_host(f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"))
            continue
        if not isinstance(item, str):
            raise OptionError(f"must be text such as host1:5671,host2:5671, and is {type(item).__name__}")
        if "://" in item:
            raise OptionError("holds a whole URI: write only the host, or use the URI as the connection")
        result.extend(split_host(part) for part in item.split(","))
    if not result:
        raise OptionError("is empty: write a host")
    return tuple(dict.fromkeys(result))


def as_is(value: object) -> object:
    """A value that is read elsewhere."""
    return value


def secret(value: object) -> object:
    """The same, and not the mask that Airflow shows in its place: somebody copied a connection as it is shown."""
    if isinstance(value, str) and value.strip() == MASK:
        raise OptionError(f"is {MASK}, which is what Airflow shows in place of a secret: paste the secret itself")
    return value


@dataclass(frozen=True)
class Option:
    """One option of a connection.

    :param read: turns what was written into the value, or raises :class:`OptionError`.
    :param default: what holds when it is not set; ``None`` when that depends on others.
    :param secret: never shown in an error, a log or a ``repr``.
    :param empty: whether empty text is a value; otherwise it means "not set", as in a form.
    """

    name: str
    read: Callable[[object], object]
    doc: str
    group: str
    default: object = None
    secret: bool = False
    empty: bool = False


_OPTIONS = (
    # where
    Option("scheme", choice("amqp", "amqps"), "`amqp` or `amqps`, as in a URI; decides on TLS.", "where"),
    Option("hosts", hosts, "One host, or several tried in order: `host1:5671,host2:5671`, IPv6 in brackets.", "where"),
    Option("port", number(1, 65535, whole=True), "Port of the hosts that are written without one.", "where"),
    Option("virtual_host", short_text, "Virtual host.", "where", "/", empty=True),
    # who
    Option("username", text, "User name.", "who", empty=True),
    Option("password", text, "Password.", "who", secret=True, empty=True),
    Option("sasl_mechanism", choice("PLAIN", "EXTERNAL"), "`PLAIN`: user and password. `EXTERNAL`: the user is the "
           "one named in the client certificate.", "who", "PLAIN"),
    Option("credentials_secret", secret, "The credential document of a cloud service, as JSON text or a file's path.",
           "who", secret=True),
    Option("connection_name", short_text, "Name shown in the broker's list of connections. By default the package, "
           "DAG, task and run.", "who"),
    # TLS
    Option("tls", boolean, "Whether to speak TLS. By default yes, unless the scheme is `amqp` or the port is not 5671.",
           "TLS"),
    Option("ca_certificate", as_is, "Authorities to trust: PEM text, base64 of PEM or DER, or a file's path; one or "
           "many certificates. By default the system's.", "TLS"),
    Option("ca_certificate_base64", as_is, "The same, base64 only.", "TLS"),
    Option("client_certificate", as_is, "Client certificate with its chain: PEM text, base64, or a file's path.",
           "TLS"),
    Option("private_key", secret, "Key of the client certificate: PEM text, base64, or a file's path.", "TLS",
           secret=True),
    Option("private_key_passphrase", text, "Passphrase of the key.", "TLS", secret=True),
    Option("server_name", text, "Name to send to the server and to look for in its certificate, when it is not the "
           "host's.", "TLS"),
    Option("minimum_tls_version", minimum_tls, "`TLSv1.2` or `TLSv1.3`.", "TLS", "TLSv1.2"),
    Option("check_hostname", boolean, "Whether the certificate must be for this host. Off is warned about.", "TLS",
           True),
    Option("verify", boolean, "Whether the certificate must come from a trusted authority. Off is warned about: "
           "anybody can then read along.", "TLS", True),
    # liveness
    Option("heartbeat", number(1, 65535, whole=True), "Seconds between heartbeats; a dead peer is noticed after two "
           "to three.", "liveness", 10),
    Option("connection_timeout", number(0.1, 3600), "Seconds one host may take to let us in: TCP, TLS and login.",
           "liveness", 15.0),
    Option("blocked_connection_timeout", number(0.1, DAY), "Seconds to wait while the broker blocks publishers "
           "because of a memory or disk alarm.", "liveness", 60.0),
    Option("attempts", number(1, 100, whole=True), "How often to try the whole list of hosts before giving up.",
           "liveness", 3),
    Option("delay", number(0, 3600), "Seconds between two attempts, give or take half by chance.", "liveness", 1.0),
    # limits
    Option("frame_max", number(4096, 131072, whole=True), "Largest AMQP frame in bytes.", "limits", 131072),
    # RabbitMQ 4 refuses more than 16 MiB by default; 3.x took 128 MiB.
    Option("max_message_bytes", number(1, 512 * 2**20, whole=True), "Largest message to publish, in bytes.", "limits",
           16 * 2**20),
    # topology
    Option("exchange", name, "Exchange of the job events.", "topology", "airflow.spark"),
    Option("queue_type", choice("classic", "quorum"), "Type of the job queues: `classic` or `quorum`.", "topology",
           "classic"),
    # RabbitMQ counts x-expires in milliseconds in 32 bits, which is 49 days.
    Option("retention", number(60, 49 * DAY, whole=True), "Seconds after which the broker deletes a job queue that "
           "nobody uses.", "topology", 7 * DAY),
    # management
    Option("management_url", http_address, "Address of the broker's management page, for links.", "management"),
)  # fmt: skip

OPTIONS: dict[str, Option] = {option.name: option for option in _OPTIONS}

#: Other names of an option that are taken without a word.
ALIASES = {"credentials": "credentials_secret"}

#: What other clients call an option. Not taken, since units and values differ, but named in the error.
KNOWN_ELSEWHERE = {
    "auth_mechanism": "sasl_mechanism",
    "ca_certs": "ca_certificate",
    "cacertfile": "ca_certificate",
    "cafile": "ca_certificate",
    "certfile": "client_certificate",
    "connection_attempts": "attempts",
    "host": "hosts",
    "keyfile": "private_key",
    "login": "username",
    "no_verify_ssl": "verify",
    "retry_delay": "delay",
    "schema": "virtual_host",
    "server_name_indication": "server_name",
    "socket_timeout": "connection_timeout",
    "ssl": "tls",
    "ssl_enabled": "tls",
    "stack_timeout": "connection_timeout",
    "user": "username",
    "vhost": "virtual_host",
    "virtualhost": "virtual_host",
}


def nearest_of(unknown: str, known: Collection[str]) -> str:
    """A hint for somebody who wrote ``unknown``: the nearest of what is known, or all of it."""
    word = unknown.strip().lower().replace("-", "_")
    matches = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean `{matches[0]}`?" if matches else f"known are {', '.join(sorted(known))}."


def _hint(unknown: str) -> str:
    word = unknown.strip().lower().replace("-", "_")
    if word in KNOWN_ELSEWHERE:
        return f"did you mean `{KNOWN_ELSEWHERE[word]}`?"
    return nearest_of(unknown, OPTIONS)


def read_options(mapping: Mapping[str, object], *, where: str) -> dict[str, object]:
    """Read what was set and leave out what was not.

    :param where: where the options were set, for errors: ``connection 'rabbitmq_default'``.
    :raises ConfigurationError: an option is unknown, given twice, or its value is not what it needs.
    """
    values: dict[str, object] = {}
    for key, value in mapping.items():
        option = OPTIONS.get(ALIASES.get(key, key))
        if option is None:
            raise ConfigurationError(f"{where}: there is no option `{key}`; {_hint(str(key))}")
        if value is None or (not option.empty and isinstance(value, (str, list, tuple, dict)) and not value):
            continue
        if option.name in values:
            raise ConfigurationError(f"{where}: option `{option.name}` is set twice; remove one.")
        try:
            values[option.name] = option.read(value)
        except OptionError as error:
            # A secret's own readers never quote it, but `text` is shared: keep to the kind of fault.
            raise ConfigurationError(f"{where}: option `{key}` {error}.") from None
    return values


def parse_json(document: str) -> object:
    """JSON without Python's extensions (NaN, Infinity).

    :raises ValueError: it is not JSON. The message does not quote the document, which may hold secrets.
    """

    def refuse(_constant: str) -> object:
        raise ValueError

    try:
        return json.loads(document, parse_constant=refuse)
    except (ValueError, RecursionError):
        raise ValueError("not JSON") from None
