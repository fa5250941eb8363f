"""CloudEvents 1.0 in structured JSON mode, for what people publish and what they wait for. No I/O.

The events of Spark jobs are another matter, with rules of their own: ``job/events.py``.
(https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md)
"""

from __future__ import annotations

import base64
import json
import re
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from airflow_rabbitmq_spark.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

CONTENT_TYPE = "application/cloudevents+json"

#: The specification's rule for the names of attributes, extensions included.
_NAME = re.compile(r"[a-z0-9]+")
#: Not for people to set: they say how the event is written, which is decided here.
_RESERVED = frozenset({"specversion", "data", "data_base64"})


def check_attributes(attributes: Mapping[str, Any]) -> None:
    """Refuse attributes that would not make an event.

    :raises ConfigurationError: `type` is missing, one that must have a value is empty, or a name is none; says which.
    """
    if not attributes.get("type"):
        raise ConfigurationError('A CloudEvent has a `type`, such as {"type": "com.example.order.placed"}: add one.')
    for name in ("id", "source"):
        if name in attributes and not attributes[name]:
            raise ConfigurationError(f"CloudEvents attribute `{name}` is empty: give it a value, or leave it out.")
    for name in attributes:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ConfigurationError(f"CloudEvents attribute {name!r}: names have small letters and digits only.")
        if name in _RESERVED:
            raise ConfigurationError(f"CloudEvents attribute `{name}` is set by itself; leave it out.")


def encode(attributes: Mapping[str, Any], data: object) -> bytes:
    """The event as a message body (content type :data:`CONTENT_TYPE`).

    :param attributes: `id`, `source`, `type` and any others; `time` is now when not given.
    :param data: bytes go as base64, text as text, anything else as JSON.
    :raises ConfigurationError: the data cannot be written as JSON.
    """
    event: dict[str, Any] = {"specversion": "1.0", "time": datetime.now(timezone.utc).isoformat(), **attributes}
    if isinstance(data, (bytes, bytearray, memoryview)):
        event.setdefault("datacontenttype", "application/octet-stream")
        event["data_base64"] = base64.b64encode(data).decode()
    else:
        event.setdefault("datacontenttype", "text/plain" if isinstance(data, str) else "application/json")
        event["data"] = data
    try:
        return json.dumps(event, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigurationError(
            f"The event's data is {type(data).__name__} and cannot be written as JSON ({error}): give bytes, text or "
            "what JSON can hold."
        ) from None
