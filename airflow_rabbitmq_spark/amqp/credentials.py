"""Recognises the credential documents that cloud services hand out, and reads the connection's options from them."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from airflow_rabbitmq_spark.amqp.options import parse_json
from airflow_rabbitmq_spark.amqp.uri import is_uri, parse_uri
from airflow_rabbitmq_spark.exceptions import ConfigurationError

#: No credential document is larger; a path to something else should not fill the memory.
_LARGEST_FILE = 2**20

Document = Mapping[str, object]


@dataclass(frozen=True)
class Shape:
    """How one service writes its credentials.

    :param name: the service, for people.
    :param marks: paths that must all be there for the document to be of this shape.
    :param uris: paths of RabbitMQ URIs; those that are there are the hosts, in this order.
    :param options: option -> path, and how to convert what is there.
    """

    name: str
    marks: tuple[str, ...]
    uris: tuple[str, ...] = ()
    options: tuple[tuple[str, str, Callable[[object], object]], ...] = field(default=())


def _as_is(value: object) -> object:
    return value


def _hosts(value: object) -> object:
    """``[{"hostname": ..., "port": ...}]`` as ``["hostname:port"]``."""
    if not isinstance(value, list):
        return value
    return [_host_port(item.get("hostname"), item.get("port")) for item in value if isinstance(item, dict)]


def _host_port(host: object, port: object) -> str:
    return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"


def _https(value: object) -> object:
    hosts = _hosts(value)
    return f"https://{hosts[0]}" if isinstance(hosts, list) and hosts else None


def _page(value: object) -> object:
    """A management address without the user and password, and without the path of its API."""
    if not isinstance(value, str):
        return None
    parts = urlsplit(value)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}" if parts.scheme in {"http", "https"} and host else None


def _path(value: object) -> object:
    """A virtual host written as a URI's path; services that mean the default write ``/`` or nothing."""
    return str(value).lstrip("/") or "/"


def _setting(name: str) -> Callable[[object], object]:
    def read(value: object) -> object:
        found = re.search(rf"^\s*{name}\s*=[ \t]*(.*?)\s*$", str(value), re.MULTILINE)
        return found[1] if found else None

    return read


#: Every shape that is known, the most particular first.
SHAPES = (
    Shape(
        "IBM Cloud Databases for RabbitMQ",
        marks=("connection.amqps.hosts", "connection.amqps.authentication"),
        options=(
            ("scheme", "connection.amqps.scheme", _as_is),
            ("hosts", "connection.amqps.hosts", _hosts),
            ("virtual_host", "connection.amqps.path", _path),
            ("username", "connection.amqps.authentication.username", _as_is),
            ("password", "connection.amqps.authentication.password", _as_is),
            ("ca_certificate_base64", "connection.amqps.certificate.certificate_base64", _as_is),
            ("management_url", "connection.https.hosts", _https),
        ),
    ),
    Shape(
        "Compose for RabbitMQ",
        marks=("uri", "ca_certificate_base64"),
        uris=("uri", "uri_direct_1", "uri_direct_2"),
        options=(
            ("ca_certificate_base64", "ca_certificate_base64", _as_is),
            ("management_url", "uri_admin", _page),
        ),
    ),
    Shape(
        "Amazon MQ (describe-broker; user and password are set beside it)",
        marks=("BrokerInstances.0.Endpoints.0",),
        uris=("BrokerInstances.0.Endpoints.0",),
        options=(("management_url", "BrokerInstances.0.ConsoleURL", _page),),
    ),
    Shape(
        "RabbitMQ Cluster Operator secret or service binding",
        marks=("host", "username", "password"),
        options=(
            ("hosts", "host", _as_is),
            ("port", "port", _as_is),
            ("virtual_host", "virtual-host", _as_is),
            ("virtual_host", "vhost", _as_is),
            ("username", "username", _as_is),
            ("password", "password", _as_is),
            ("ca_certificate", "ca.crt", _as_is),
        ),
    ),
    Shape(
        "RabbitMQ Cluster Operator default_user.conf (the host is set beside it)",
        marks=("default_user.conf",),
        options=(
            ("username", "default_user.conf", _setting("default_user")),
            ("password", "default_user.conf", _setting("default_pass")),
            ("ca_certificate", "ca.crt", _as_is),
        ),
    ),
    Shape(
        "CloudAMQP",
        marks=("uri",),
        uris=("uri",),
        options=(("management_url", "http_api_uri", _page), ("management_url", "dashboard_url", _page)),
    ),
    Shape("CloudAMQP API", marks=("url",), uris=("url",)),
    Shape("Heroku CloudAMQP variable", marks=("CLOUDAMQP_URL",), uris=("CLOUDAMQP_URL",)),
    Shape("connection string", marks=("connection_string",), uris=("connection_string",)),
)


def recognise(document: object, *, where: str) -> dict[str, object]:
    """Read the options of a connection from a credential document.

    :param document: JSON as text or read, a URI, the text of a ``default_user.conf``, or the path of a file with one
        of these or of a directory of service-binding files.
    :param where: where it was set, for errors, which never quote it.
    :return: options as ``Endpoint.from_mapping`` takes them.
    :raises ConfigurationError: it is of no known shape.
    """
    if isinstance(document, str):
        document = _read(document, where)
    candidates = list(_candidates(document))
    for candidate in candidates:
        for shape in SHAPES:
            if all(_at(candidate, mark) not in (None, "") for mark in shape.marks):
                return _options(shape, candidate, where)
    keys = sorted({str(key) for candidate in candidates[:1] for key in candidate})[:12]
    raise ConfigurationError(
        f"{where}: these credentials are of no known shape (keys: {', '.join(keys) or 'none'}). Known are "
        f"{'; '.join(shape.name for shape in SHAPES)}; or a plain amqps:// URI. Or fill in host, port, login, password "
        "and CA one by one."
    )


def _options(shape: Shape, document: Document, where: str) -> dict[str, object]:
    result: dict[str, object] = {}
    hosts: list[object] = []
    for path in shape.uris:
        uri = _at(document, path)
        if not isinstance(uri, str):
            continue
        options = parse_uri(uri, where=f"{where}, `{path}`")
        hosts.append(options.pop("hosts"))
        if options.get("virtual_host") == "":
            del options["virtual_host"]  # services end a URI with / and mean the default
        result = {**options, **result}
    if hosts:
        result["hosts"] = ",".join(str(host) for host in hosts)
    for option, path, convert in shape.options:
        value = _at(document, path)
        converted = None if value is None else convert(value)
        if converted not in (None, ""):
            result.setdefault(option, converted)
    return result


def _candidates(document: object, depth: int = 0) -> list[Document]:
    """The document and what is wrapped in it: service keys, ``VCAP_SERVICES``, Kubernetes secrets, lists of these."""
    if depth > 4:
        return []
    if isinstance(document, list):
        return [found for item in document for found in _candidates(item, depth + 1)]
    if not isinstance(document, dict):
        return []
    if document.get("kind") == "Secret":
        return [{**_decoded(document.get("data")), **_mapping(document.get("stringData"))}]
    inner = [value for key, value in document.items() if key == "credentials" or isinstance(value, list)]
    return [document, *(found for value in inner for found in _candidates(value, depth + 1))]


def _mapping(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else {}


def _decoded(data: object) -> dict[str, object]:
    return {key: _decode(value) for key, value in _mapping(data).items()}


def _decode(value: object) -> str | None:
    try:
        return base64.b64decode(str(value), validate=True).decode()
    except (binascii.Error, ValueError):
        return None  # other keys than those that matter may hold binary data


def _at(document: object, path: str) -> object:
    """What is at a dotted path; a key that holds dots itself is found first."""
    if isinstance(document, dict) and path in document:
        return document[path]
    head, _, rest = path.partition(".")
    if isinstance(document, list):
        inner = document[int(head)] if head.isdigit() and int(head) < len(document) else None
    elif isinstance(document, dict):
        inner = document.get(head)
    else:
        return None
    return _at(inner, rest) if rest else inner


def _read(text: str, where: str) -> object:
    document = _understand(text)
    if document is not None:
        return document
    text = text.strip()
    problem = ConfigurationError(
        f"{where}: this is neither the JSON of credentials, nor a RabbitMQ URI, nor the path of a file or directory "
        "that can be read here. Paste the document whole, from its first { to its last }."
    )
    if not text or "\n" in text or len(text) > 1024:
        raise problem
    path = Path(text).expanduser()
    try:
        if path.is_dir():  # a service binding: a file for each key
            files = [file for file in sorted(path.iterdir()) if file.is_file() and not file.name.startswith(".")]
            return {file.name: _content(file).strip() for file in files}
        document = _understand(_content(path))
    except (OSError, ValueError):
        raise problem from None
    if document is None:
        raise ConfigurationError(f"{where}: the file holds neither the JSON of credentials nor a RabbitMQ URI.")
    return document


def _content(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(_LARGEST_FILE).decode()


def _understand(text: str) -> object | None:
    """JSON, a URI or a ``default_user.conf``; ``None`` when it is none of these."""
    if is_uri(text):
        return {"uri": text.strip()}
    if re.search(r"^\s*default_user\s*=", text, re.MULTILINE):
        return {"default_user.conf": text}
    try:
        document = parse_json(text)
    except ValueError:
        return None
    return document if isinstance(document, (dict, list)) else None
