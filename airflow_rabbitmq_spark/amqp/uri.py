"""Takes ``amqp://`` and ``amqps://`` URIs apart."""

from __future__ import annotations

from urllib.parse import parse_qsl, unquote

from airflow_rabbitmq_spark.exceptions import ConfigurationError

SCHEMES = frozenset({"amqp", "amqps"})


def is_uri(text: str) -> bool:
    """Whether a text is meant as a RabbitMQ URI."""
    scheme, separator, _ = text.strip().partition("://")
    return bool(separator) and scheme.lower() in SCHEMES


def parse_uri(uri: str, *, where: str) -> dict[str, object]:
    """The options that a URI sets.

    ``urllib`` takes such a URI apart only when it has one host, so this does it. As AMQP has it, ``amqps://host`` says
    nothing of the virtual host and ``amqps://host/`` names the one with the empty name. No error quotes the URI.

    :param where: where the URI was set, for errors.
    :raises ConfigurationError: it is no such URI.
    """
    if not is_uri(uri):
        raise ConfigurationError(f"{where}: a RabbitMQ URI starts with amqps:// or amqp://.")
    scheme, _, rest = uri.strip().partition("://")
    rest, _, _fragment = rest.partition("#")
    rest, _, query = rest.partition("?")
    authority, slash, path = rest.partition("/")
    user, at, hosts = authority.rpartition("@")
    if "@" in user or (not at and "@" in path):
        # Half a password would pass for a user name or a virtual host, which are shown in messages.
        raise ConfigurationError(
            f"{where}: the user name or password holds an @ or a /, which a URI writes %40 and %2F. (User and password "
            "are written once, also for several hosts.)"
        )
    mapping: dict[str, object] = {"scheme": scheme.lower()}
    try:
        mapping["hosts"] = unquote(hosts, errors="strict") or "localhost"
        if at:
            username, colon, password = user.partition(":")
            mapping["username"] = unquote(username, errors="strict")
            if colon:
                mapping["password"] = unquote(password, errors="strict")
        if slash:
            mapping["virtual_host"] = unquote(path, errors="strict")
        pairs = parse_qsl(query, keep_blank_values=True, errors="strict", max_num_fields=100)
    except ValueError:
        raise ConfigurationError(
            f"{where}: the URI is not percent-encoded UTF-8; encode each part, in Python with "
            "urllib.parse.quote(part, safe='')."
        ) from None
    for name, value in pairs:
        if name in mapping:
            raise ConfigurationError(f"{where}: option `{name}` is set twice in the URI; remove one.")
        mapping[name] = value
    return mapping
