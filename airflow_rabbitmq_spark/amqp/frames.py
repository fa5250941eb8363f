"""Reading frames that anybody may have filled.

All waits of a triggerer share one connection, and pika gives a connection up when it cannot read a header: a date past
the year 9999, a number that is none, tables nested a thousand deep. The broker then delivers the same message again, so
that one poisoned message would keep everybody disconnected for ever. It also puts together a body of any size before
anybody can refuse it. Here such a message is delivered without what is wrong with it, and says so
(:attr:`Message.problem <airflow_rabbitmq_spark.amqp.connection.Message>`): whose queue it is decides.
"""

from __future__ import annotations

import struct
from typing import Any, cast

import pika
from pika import frame, spec
from pika.adapters.asyncio_connection import AsyncioConnection
from pika.adapters.select_connection import SelectConnection
from pika.channel import ContentFrameAssembler

#: Bytes of a message's properties, headers included, that are read. pika reads about one header in a microsecond on the
#: event loop, and the smallest has one byte: so this is at most 15 ms (benchmarks/hostile.py). RabbitMQ itself adds
#: some hundred bytes for each queue that has dead-lettered a message.
MAX_PROPERTIES_BYTES = 16 * 2**10

_FRAME_START = struct.Struct(">BHL")
_CONTENT_START = struct.Struct(">HHQ")


class Unreadable(pika.BasicProperties):  # type: ignore[misc,unused-ignore]
    """Properties that could not be read."""

    def __init__(self, problem: str) -> None:
        super().__init__()
        self.problem = problem


def read_frame(buffer: bytes) -> tuple[int, Any]:
    """As ``pika.frame.decode_frame``, but what is wrong with a message's properties is no error."""
    if buffer[:1] != bytes((spec.FRAME_HEADER,)) or len(buffer) < _FRAME_START.size:
        return cast("tuple[int, Any]", frame.decode_frame(buffer))
    _, channel, size = _FRAME_START.unpack_from(buffer)
    end = _FRAME_START.size + size + spec.FRAME_END_SIZE
    if len(buffer) < end:
        return 0, None
    if size > MAX_PROPERTIES_BYTES:
        problem = f"its properties and headers have {size:,} bytes, and {MAX_PROPERTIES_BYTES:,} are read at most"
    else:
        try:
            return cast("tuple[int, Any]", frame.decode_frame(buffer[:end]))
        except pika.exceptions.InvalidFrameError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever pika's decoder comes to on bytes that anybody may choose
            problem = f"its properties or headers cannot be read ({type(error).__name__})"
    _, _, body_size = _CONTENT_START.unpack_from(buffer, _FRAME_START.size)
    return end, frame.Header(channel, body_size, Unreadable(problem))


class TolerantConnection(AsyncioConnection):  # type: ignore[misc,unused-ignore]
    """pika's connection, which a message cannot break."""

    def _read_frame(self) -> tuple[int, Any]:
        return read_frame(self._frame_buffer)


class TolerantBlockingImplementation(SelectConnection):  # type: ignore[misc,unused-ignore]
    """What is behind pika's blocking connection, likewise."""

    def _read_frame(self) -> tuple[int, Any]:
        return read_frame(self._frame_buffer)


class BoundedAssembler(ContentFrameAssembler):  # type: ignore[misc,unused-ignore]
    """Puts bodies together; of one that is larger than ``limit`` bytes nothing is kept."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit

    def _handle_body_frame(self, body_frame: Any) -> Any:
        header: Any = self._header_frame
        if header.body_size <= self._limit:
            return super()._handle_body_frame(body_frame)
        self._seen_so_far += len(body_frame.fragment)
        if self._seen_so_far < header.body_size:
            return None
        header.properties.problem = f"it has {header.body_size:,} bytes, and {self._limit:,} are read at most"
        return self._finish()
