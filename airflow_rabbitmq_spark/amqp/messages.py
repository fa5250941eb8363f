"""Makes messages to publish of what people have at hand."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pika

from airflow_rabbitmq_spark.amqp.options import nearest_of
from airflow_rabbitmq_spark.amqp.publisher import Outgoing
from airflow_rabbitmq_spark.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

#: AMQP's message properties, by the names pika gives them.
PROPERTIES = frozenset(
    {
        "app_id",
        "content_encoding",
        "content_type",
        "correlation_id",
        "delivery_mode",
        "expiration",
        "headers",
        "message_id",
        "priority",
        "reply_to",
        "timestamp",
        "type",
        "user_id",
    }
)

#: Those that AMQP wants as whole numbers; a template makes text of them.
NUMBERS = ("priority", "delivery_mode", "timestamp")

PERSISTENT = 2


def outgoing(
    exchange: str,
    routing_key: str,
    body: object,
    *,
    properties: Mapping[str, Any] | None = None,
    headers: Mapping[str, Any] | None = None,
) -> Outgoing:
    """A persistent message. Bytes go as they are, text as UTF-8, anything else as JSON, each with its content type.

    :param properties: AMQP properties by name; they replace what would be set here. Whole numbers may be texts, and
        ``expiration`` milliseconds or a timedelta.
    :param headers: the message's headers.
    :raises ConfigurationError: the body is not JSON, there is no such property, or one that must be a number is none.
    """
    content, content_type = _encode(body)
    values: dict[str, Any] = {"delivery_mode": PERSISTENT, "content_type": content_type}
    for name, value in (properties or {}).items():
        if name not in PROPERTIES:
            raise ConfigurationError(f"AMQP messages have no property `{name}`; {nearest_of(name, PROPERTIES)}")
        values[name] = _typed(name, value)
    if headers:
        values["headers"] = {**(values.get("headers") or {}), **headers}
    return Outgoing(body=content, routing_key=routing_key, exchange=exchange, properties=pika.BasicProperties(**values))


def _typed(name: str, value: Any) -> Any:
    """A property's value as AMQP wants it."""
    if name in NUMBERS and isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            raise ConfigurationError(f"Property `{name}` is {value!r}; it must be a whole number.") from None
    if name == "expiration" and isinstance(value, timedelta):
        return str(round(value.total_seconds() * 1000))
    if name == "expiration" and isinstance(value, int):
        return str(value)
    return value


def check_size(message: Outgoing, largest: int) -> Outgoing:
    """The message, if it is not too large.

    :param largest: bytes; the endpoint's ``max_message_bytes``.
    :raises ConfigurationError: it is.
    """
    if len(message.body) > largest:
        raise ConfigurationError(
            f"The message for {message.routing_key!r} has {len(message.body)} bytes, more than option "
            f"`max_message_bytes` of the connection allows ({largest}). Send a reference to it instead, or raise the "
            "option together with the broker's max_message_size."
        )
    return message


def _encode(body: object) -> tuple[bytes, str]:
    if isinstance(body, (bytes, bytearray, memoryview)):
        return bytes(body), "application/octet-stream"
    if isinstance(body, str):
        return body.encode(), "text/plain; charset=utf-8"
    try:
        return json.dumps(body, ensure_ascii=False, allow_nan=False).encode(), "application/json"
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigurationError(
            f"The message's body is {type(body).__name__} and cannot be written as JSON ({error}): give bytes, text or "
            "what JSON can hold."
        ) from None
