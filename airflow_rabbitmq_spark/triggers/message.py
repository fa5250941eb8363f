"""What a message looks like to a DAG, and which messages a wait is for. No I/O.

A message of a user's own queue may hold anything: bytes, dates, numbers past 64 bits, nested tables. What Airflow keeps
of it goes through JSON and into a database, and what JSON cannot hold kills a triggerer (Airflow 3.3.2), so nothing
leaves here that JSON cannot hold.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from datetime import datetime, timezone
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from airflow_rabbitmq_spark.exceptions import ConfigurationError
from airflow_rabbitmq_spark.job.events import MAX_INTEGER, collector_off, json_problem, shape_problem

if TYPE_CHECKING:
    from airflow_rabbitmq_spark.amqp.connection import Message

#: Bytes of a body, at most, that go through Airflow's database unless the author says otherwise.
DEFAULT_BODY_BYTES = 256 * 2**10
#: And whatever the author says: the body is logged with the trigger's event, stored twice and sent through Airflow's API.
MAX_BODY_BYTES = 1 * 2**20
#: Headers nested deeper than this, and more entries than that in all, are cut off: nobody reads them, and they cost.
MAX_HEADER_DEPTH = 8
MAX_HEADER_ENTRIES = 1_000
#: Characters of one header or property, at the most: AMQP lets a header have megabytes.
MAX_TEXT = 8_192

_PROPERTIES = (
    "message_id",
    "correlation_id",
    "type",
    "app_id",
    "user_id",
    "reply_to",
    "content_type",
    "content_encoding",
    "expiration",
    "priority",
    "delivery_mode",
)
#: What the first word of a rule may be, beside ``body`` and ``headers``.
FIELDS = frozenset({*_PROPERTIES, "timestamp", "exchange", "routing_key", "redelivered"})


def payload(message: Message, *, max_body_bytes: int = DEFAULT_BODY_BYTES) -> dict[str, Any]:
    """A message as JSON.

    ``body_encoding`` says what ``body`` is: ``json`` (the body was JSON, and is here as its value), ``text``, ``base64``
    (neither), or ``none``: it has more than ``max_body_bytes``, and ``body`` is null. ``problem`` says what of the message
    could not be read, and is null.
    """
    properties = message.properties
    result: dict[str, Any] = {name: _safe_property(getattr(properties, name, None)) for name in _PROPERTIES}
    result["timestamp"] = _safe_time(properties.timestamp)
    # pika leaves bytes where UTF-8 was meant.
    result["exchange"] = _safe_property(message.exchange)
    result["routing_key"] = _safe_property(message.routing_key)
    result["redelivered"] = bool(message.redelivered)
    headers = message.headers
    result["headers"] = _Safe().value(headers, 0) if isinstance(headers, Mapping) else {}
    result["problem"] = message.problem
    result["body_bytes"] = len(message.body)
    result["body"], result["body_encoding"] = _body(message, max_body_bytes)
    return result


def _body(message: Message, limit: int) -> tuple[Any, str]:
    body = message.body
    if len(body) > limit:
        return None, "none"
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return base64.b64encode(body).decode(), "base64"
    content_type = message.properties.content_type
    kind = content_type.split(";")[0].strip().lower() if isinstance(content_type, str) else ""
    # Many publishers leave the type out, or say that JSON is text.
    if (kind.endswith(("/json", "+json")) or text[:1] in ("{", "[")) and shape_problem(body) is None:
        try:
            with collector_off(len(body)):
                value = json.loads(text, parse_constant=_refuse)
        except (ValueError, RecursionError):
            pass
        else:
            if json_problem(value) is None and not _has_null_character(value):
                return value, "json"
    if "\0" in text:
        # PostgreSQL can hold it in no text.
        return base64.b64encode(body).decode(), "base64"
    return text, "text"


def _refuse(name: str) -> None:
    raise ValueError(name)


def _has_null_character(value: Any) -> bool:
    """Whether a text in ``value``, which is JSON of a checked depth, has the character that PostgreSQL cannot hold."""
    if isinstance(value, str):
        return "\0" in value
    if isinstance(value, dict):
        return any("\0" in key or _has_null_character(item) for key, item in value.items())
    if isinstance(value, list):
        return any(map(_has_null_character, value))
    return False


class _Safe:
    """Makes headers into JSON, with a budget: they are a table of tables that anybody may have filled."""

    def __init__(self) -> None:
        self._left = MAX_HEADER_ENTRIES

    def value(self, value: Any, depth: int) -> Any:
        if isinstance(value, Mapping):
            if depth >= MAX_HEADER_DEPTH:
                return "..."
            table: dict[str, Any] = {}
            for key, item in value.items():
                if not self._take():
                    break
                table[str(_safe_property(key))] = self.value(item, depth + 1)
            return table
        if isinstance(value, (list, tuple)):
            if depth >= MAX_HEADER_DEPTH:
                return "..."
            items = []
            for item in value:
                if not self._take():
                    break
                items.append(self.value(item, depth + 1))
            return items
        return _safe_property(value)

    def _take(self) -> bool:
        self._left -= 1
        return self._left >= 0


def _safe_property(value: Any) -> Any:
    """A single value of AMQP's as JSON: what has no like there becomes a text.

    Of JSON's own types to the letter: pika has an integer class of its own, and Airflow's msgpack refuses it.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value) if -MAX_INTEGER - 1 <= value <= MAX_INTEGER else f"{int(value)}"
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(value)
    if isinstance(value, str):
        return _safe_text(value)
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=timezone.utc)).isoformat()
    if isinstance(value, (bytes, bytearray, memoryview)):
        raw = bytes(value)[:MAX_TEXT]
        try:
            return _safe_text(raw.decode())
        except UnicodeDecodeError:
            return base64.b64encode(raw).decode()
    if isinstance(value, Decimal):
        return _safe_text(str(value))
    return _safe_text(repr(value))


def _safe_text(text: str) -> str:
    return text[:MAX_TEXT].encode(errors="replace").decode().replace("\0", "\ufffd")


def _safe_time(value: Any) -> str | None:
    """The property ``timestamp``: seconds since the epoch, in 64 bits of which anybody may have set all."""
    if isinstance(value, datetime):
        return str(_safe_property(value))
    if not isinstance(value, int):
        return None
    try:
        return datetime.fromtimestamp(value, tz=timezone.utc).isoformat()
    except (ValueError, OverflowError, OSError):
        return f"{int(value)}"


# Rules -------------------------------------------------------------------------------------------------------------


def check_rules(rules: Mapping[str, Any]) -> None:
    """Refuse rules that could never match.

    :raises ConfigurationError: says which.
    """
    from airflow_rabbitmq_spark.amqp.options import nearest_of

    if not rules:
        raise ConfigurationError("`match` is empty; leave it out to take any message.")
    for name, wanted in rules.items():
        first, _, rest = str(name).partition(".")
        if first in ("body", "headers"):
            if first == "headers" and not rest:
                raise ConfigurationError('`match` has "headers" alone; name one, such as "headers.kind".')
        elif first not in FIELDS or rest:
            raise ConfigurationError(
                f"`match` has {name!r}, and a message has no such part; write body.NAME, headers.NAME, or a property: "
                f"{nearest_of(first, FIELDS)}"
            )
        if problem := json_problem(wanted):
            raise ConfigurationError(f"`match` has {name!r} with a value that {problem}: give what JSON can hold.")


def matches(rules: Mapping[str, Any], message: Mapping[str, Any]) -> bool:
    """Whether a message, as :func:`payload` makes it, fulfils every rule.

    A rule's name is a path, such as ``routing_key``, ``headers.kind`` or ``body.order.lines.0.sku``; its value what must
    be there, or a list of what may.
    """
    return all(_is(wanted, _at(message, name)) for name, wanted in rules.items())


def _is(wanted: Any, found: Any) -> bool:
    if isinstance(wanted, (list, tuple)):
        return any(_is(one, found) for one in wanted)
    # In Python True is 1; in JSON it is not.
    return isinstance(wanted, bool) == isinstance(found, bool) and bool(found == wanted)


_NOWHERE = object()


def _at(value: Any, path: str) -> Any:
    """What is at a path; a name with dots in it is found too."""
    if isinstance(value, Mapping):
        if path in value:
            return value[path]
        first, dot, rest = path.partition(".")
        return _at(value[first], rest) if dot and first in value else _NOWHERE
    if isinstance(value, list):
        first, dot, rest = path.partition(".")
        if first.isascii() and first.isdigit() and len(first) < 10 and int(first) < len(value):
            return _at(value[int(first)], rest) if dot else value[int(first)]
    return _NOWHERE
