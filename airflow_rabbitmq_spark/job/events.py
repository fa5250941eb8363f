"""What is said about a job: the kinds of event, and their form on the wire. No I/O.

Events are CloudEvents 1.0 in structured JSON mode (https://github.com/cloudevents/spec, "JSON Event Format").
``docs/protocol.md`` describes them for readers in other languages, ``docs/event.schema.json`` for machines.
"""

from __future__ import annotations

import contextlib
import gc
import json
import math
import threading
import uuid
from dataclasses import dataclass, field
from datetime import datetime, timezone
from enum import Enum
from typing import TYPE_CHECKING, Any

from airflow_rabbitmq_spark.exceptions import EventInvalid, ResultInvalid

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

CONTENT_TYPE = "application/cloudevents+json"
TYPE_PREFIX = "airflow.spark.job."

#: Bytes of a result as JSON. It becomes an XCom, so it goes through Airflow's API and into its database.
MAX_RESULT_BYTES = 1 * 2**20
#: Bytes of an event that a reader accepts.
MAX_EVENT_BYTES = 2 * 2**20
#: Values of an event (an entry of an object counts twice: it has a key), and lists and objects among them. Python's JSON
#: decoder lets no other thread run, the triggerer's event loop included, and how long is not a matter of bytes: 2 MiB of
#: text are read in 3 ms, 2 MiB of empty lists in a second. This many are read in some 50 ms (benchmarks/hostile.py).
MAX_VALUES = 100_000
MAX_CONTAINERS = 25_000
#: Bytes from which the garbage collector is off while a message is decoded.
COLLECTOR_OFF = 8 * 2**10
#: JSON has no limit of its own for integers, but databases and other languages do: signed 64 bits.
MAX_INTEGER = 2**63 - 1
#: Deeper than any result a person writes, and far from Python's recursion limit.
MAX_DEPTH = 64


class Kind(str, Enum):
    """What an event says."""

    STARTED = "started"
    PROGRESS = "progress"
    RESUMED = "resumed"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    LOST = "lost"
    CANCEL = "cancel"

    def __str__(self) -> str:
        return self.value


#: Nothing follows these from the same driver.
FINAL = frozenset({Kind.SUCCEEDED, Kind.FAILED, Kind.CANCELLED})


@dataclass(frozen=True)
class Event:
    """One thing said about one job.

    :param subject: the job's id.
    :param sequence: counts a driver's events from 1; None where the broker or Airflow speaks.
    :param data: depends on the kind; JSON.
    """

    kind: Kind
    subject: str
    source: str
    sequence: int | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    time: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    traceparent: str | None = None

    @property
    def is_final(self) -> bool:
        """Whether the driver has said its last word."""
        return self.kind in FINAL


def encode(event: Event) -> bytes:
    """The event as a message body (content type :data:`CONTENT_TYPE`).

    :raises EventInvalid: its data is not JSON.
    """
    attributes: dict[str, Any] = {
        "specversion": "1.0",
        "id": event.id,
        "source": event.source,
        "type": TYPE_PREFIX + event.kind.value,
        "subject": event.subject,
        "time": event.time.isoformat(timespec="microseconds"),
        "datacontenttype": "application/json",
    }
    if event.sequence is not None:
        attributes["sequence"] = event.sequence
    if event.traceparent is not None:
        attributes["traceparent"] = event.traceparent
    attributes["data"] = event.data
    try:
        return json.dumps(attributes, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise EventInvalid(f"The data of a {event.kind} event is not JSON: {error}") from error


def decode(body: bytes) -> Event:
    """Read a message body that anybody may have written.

    :raises EventInvalid: it is not an event of this protocol; the message says why, and quotes nothing of it at length.
    """
    if len(body) > MAX_EVENT_BYTES:
        raise EventInvalid(f"it has {len(body)} bytes, and an event has {MAX_EVENT_BYTES} at most")
    if problem := shape_problem(body):
        raise EventInvalid(f"it {problem}")
    with collector_off(len(body)):
        return _event(_attributes(body))


_collector = threading.Lock()
_off_for = 0
_was_on = False


@contextlib.contextmanager
def collector_off(size: int) -> Iterator[None]:
    """Python's garbage collector is off while something of ``size`` bytes is decoded, if that is much.

    The collector begins for each 700 new lists or objects, now and then with all that the process has, and in a triggerer
    that takes 100 ms (benchmarks/hostile.py). With this a message makes it begin once at the most, in place of 35 times.
    What is decoded has no cycles, so nothing in it waits to be found. Several threads may be in here.
    """
    global _off_for, _was_on  # noqa: PLW0603 - the collector is one for the process
    if size < COLLECTOR_OFF:
        yield
        return
    with _collector:
        if _off_for == 0:
            _was_on = gc.isenabled()
            gc.disable()
        _off_for += 1
    try:
        yield
    finally:
        with _collector:
            _off_for -= 1
            if _off_for == 0 and _was_on:
                gc.enable()


def _attributes(body: bytes) -> dict[str, Any]:
    try:
        attributes = json.loads(body.decode(), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise EventInvalid(f"it is not UTF-8 (byte {error.start})") from error
    except RecursionError as error:
        raise EventInvalid("it is nested too deep") from error
    except EventInvalid:
        raise
    except ValueError as error:
        raise EventInvalid(f"it is not JSON: {error}") from error
    if not isinstance(attributes, dict):
        raise EventInvalid(f"it is a JSON {type(attributes).__name__}, not an object")
    return attributes


def _event(attributes: Mapping[str, Any]) -> Event:
    if attributes.get("specversion") != "1.0":
        raise EventInvalid("its specversion is not '1.0'")
    kind_text = _text(attributes, "type")
    if not kind_text.startswith(TYPE_PREFIX):
        raise EventInvalid(f"its type does not start with {TYPE_PREFIX!r}")
    try:
        kind = Kind(kind_text[len(TYPE_PREFIX) :])
    except ValueError as error:
        known = ", ".join(Kind)
        raise EventInvalid(f"its kind is none of {known}") from error
    time_text = _text(attributes, "time")
    try:
        time = datetime.fromisoformat(time_text.replace("Z", "+00:00"))
    except ValueError as error:
        raise EventInvalid("its time is not in RFC 3339 form") from error
    if time.tzinfo is None:
        raise EventInvalid("its time has no time zone")
    sequence = attributes.get("sequence")
    if sequence is not None and (
        not isinstance(sequence, int) or isinstance(sequence, bool) or not 1 <= sequence <= MAX_INTEGER
    ):
        raise EventInvalid("its sequence is not a whole number from 1")
    traceparent = attributes.get("traceparent")
    if traceparent is not None and not isinstance(traceparent, str):
        raise EventInvalid("its traceparent is not a text")
    data = attributes.get("data", {})
    if not isinstance(data, dict):
        raise EventInvalid("its data is not an object")
    if problem := json_problem(data):
        raise EventInvalid(f"its data {problem}")
    return Event(
        kind=kind,
        subject=_text(attributes, "subject"),
        source=_text(attributes, "source"),
        sequence=sequence,
        data=data,
        id=_text(attributes, "id"),
        time=time,
        traceparent=traceparent,
    )


def _text(attributes: Mapping[str, Any], name: str) -> str:
    value = attributes.get(name)
    if not isinstance(value, str) or not 1 <= len(value) <= 1024:
        raise EventInvalid(f"its {name} is not a text of 1 to 1024 characters")
    if json_problem(value):
        raise EventInvalid(f"its {name} has half a character (a lone surrogate)")
    return value


def _refuse_constant(name: str) -> None:
    raise EventInvalid(f"it has the number {name}, which JSON does not know")


def shape_problem(body: bytes) -> str | None:
    """Why a body is not even to be given to a JSON decoder, or None: it has too many values. Costs some milliseconds."""
    if _fits(body):
        return None
    # What is in texts counts for nothing. In JSON a backslash is in a text.
    bare = body.replace(rb"\\", b"").replace(rb"\"", b"")
    if bare.count(b'"') <= 4 * MAX_VALUES and _fits(b"".join(bare.split(b'"')[::2])):
        return None
    return f"has more than {MAX_VALUES:,} values, or {MAX_CONTAINERS:,} lists and objects among them"


def _fits(body: bytes) -> bool:
    containers = body.count(b"[") + body.count(b"{")
    return containers <= MAX_CONTAINERS and containers + body.count(b",") + body.count(b":") <= MAX_VALUES


def json_problem(value: Any) -> str | None:
    """Why ``value`` could not travel as JSON to any language and any database, or None when it can."""
    found = _find_problem(value, 0)
    if found is None:
        return None
    problem, path = found
    return f"{problem} at {path}" if path else problem


def _find_problem(value: Any, depth: int) -> tuple[str, str] | None:
    """The first problem and its path. The path is put together on the way back, so that it costs nothing without."""
    if isinstance(value, str):
        return ("has half a character (a lone surrogate)", "") if _has_surrogate(value) else None
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, int):
        return None if -MAX_INTEGER - 1 <= value <= MAX_INTEGER else ("has a whole number past 64 bits", "")
    if isinstance(value, float):
        return None if math.isfinite(value) else (f"has {value}", "")
    if depth >= MAX_DEPTH:
        return f"is nested more than {MAX_DEPTH} deep", ""
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str) or _has_surrogate(key):
                return f"has a key that is not a text but {type(key).__name__}", ""
            if found := _find_problem(item, depth + 1):
                return found[0], f"[{key!r:.40}]{found[1]}"
        return None
    if isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            if found := _find_problem(item, depth + 1):
                return found[0], f"[{index}]{found[1]}"
        return None
    return f"has a {type(value).__module__}.{type(value).__qualname__}", ""


def _has_surrogate(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def check_result(result: Any, *, limit: int = MAX_RESULT_BYTES) -> Any:
    """Check that ``result`` can become the task's XCom.

    :param limit: bytes as JSON.
    :return: a copy of it, of JSON's own types only.
    :raises ResultInvalid: it is not JSON, or larger than the limit; says where and what to do instead.
    """
    if problem := json_problem(result):
        raise ResultInvalid(
            f"The job's result {problem}: a result must be JSON (texts, numbers, true, false, null, lists, and "
            "objects with text keys). Convert it first: float(x) or x.item() for a NumPy number, x.tolist() for an "
            "array, str(x) or x.isoformat() for a date, and a null for a missing number."
        )
    text = json.dumps(result, ensure_ascii=False, separators=(",", ":"))
    if r"\u0000" in text.replace(r"\\", ""):
        raise ResultInvalid(
            "The job's result has a text with a null character, which PostgreSQL cannot store: remove it, as in "
            r"text.replace('\0', '')."
        )
    body = text.encode()
    if problem := shape_problem(body):
        raise ResultInvalid(
            f"The job's result {problem}: a result becomes an XCom, in Airflow's database. Save it to a file or a table and "
            "pass its path."
        )
    size = len(body)
    if size > limit:
        remedy = ", or raise max_result_bytes of the SparkJobOperator" if limit < MAX_RESULT_BYTES else ""
        raise ResultInvalid(
            f"The job's result has {size:,} bytes as JSON and the limit is {limit:,}: a result becomes an XCom, in "
            f"Airflow's database. Save it to a file or a table and pass its path{remedy}."
        )
    return json.loads(text)
