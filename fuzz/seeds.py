"""What a fuzzer begins with, and the parts of hostile messages that tests and benchmarks share."""

from __future__ import annotations

import struct
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pika
from pika import spec

from airflow_rabbitmq_spark.job.events import Event, Kind, encode

if TYPE_CHECKING:
    from collections.abc import Iterator

JOB_ID = "0" * 32
_DATA: dict[Kind, dict[str, Any]] = {
    Kind.STARTED: {"host": "h", "pid": 7, "application_id": "app-1", "ui": "http://h:4040"},
    Kind.PROGRESS: {"fraction": 0.5, "text": "half", "metrics": {"a": 1.5}},
    Kind.RESUMED: {"away": 1.5},
    Kind.SUCCEEDED: {"result": {"a": [1, 2.5, None, True, "x"]}, "has_result": True, "duration": 1.0},
    Kind.FAILED: {"type": "ValueError", "message": "m", "traceback": "t"},
    Kind.LOST: {"host": "h"},
}
#: Flags of BasicProperties that say: headers, and nothing else.
HEADERS_ONLY = spec.BasicProperties.FLAG_HEADERS


def events() -> Iterator[bytes]:
    """An event of each kind."""
    for kind, data in _DATA.items():
        yield encode(Event(kind, JOB_ID, "/airflow/d/t", 1, data))


def table(entries: bytes) -> bytes:
    """A field table of AMQP's from its encoded entries."""
    return struct.pack(">I", len(entries)) + entries


def nested(depth: int) -> bytes:
    """Entries that hold a table that holds a table, and so on."""
    entries = b""
    for _ in range(depth):
        entries = b"\x01aF" + table(entries)
    return entries


class RawHeaders(pika.BasicProperties):  # type: ignore[misc,unused-ignore]
    """Properties whose header table is written as it is given."""

    def __init__(self, entries: bytes) -> None:
        super().__init__()
        self.entries = entries

    def encode(self) -> list[bytes]:
        return [struct.pack(">H", HEADERS_ONLY), table(self.entries)]


def header_frame(entries: bytes, body_size: int = 2) -> bytes:
    """The frame in which a broker delivers a message with these headers."""
    content = struct.pack(">HHQH", spec.Basic.INDEX, 0, body_size, HEADERS_ONLY) + table(entries)
    return struct.pack(">BHL", spec.FRAME_HEADER, 1, len(content)) + content + bytes((spec.FRAME_END,))


#: Header tables that pika cannot read, or not in the time that an event loop has, by what is wrong with them.
HEADERS: dict[str, bytes] = {
    "a date after the year 9999": b"\x01aT" + struct.pack(">Q", 2**62),
    "tables nested 2,000 deep": nested(2_000),
    "100,000 values": b"\x01aA" + struct.pack(">I", 100_000) + b"V" * 100_000,
}


def write() -> Path:
    """Write the fuzzer's first inputs to a folder of their own."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    inputs = [b"\0" + body for body in events()] + [b"\1" + body for body in events()]
    inputs += [b"\2" + entries[:4000] for entries in HEADERS.values()]
    inputs += [b"\2" + b"\x01aS" + struct.pack(">I", 1) + b"x" + b"\x01bl" + bytes(8) + b"\x01cD\x02" + bytes(4)]
    for number, content in enumerate(inputs):
        (folder / f"seed-{number}").write_bytes(content)
    return folder
