"""What belongs to an event loop and goes with it."""

from __future__ import annotations

import asyncio
import threading
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class PerLoop(Generic[K, V]):
    """A mapping for each event loop. Those of loops that are closed go at the next :meth:`get`, on whichever loop.

    Not a ``WeakKeyDictionary``: what is kept here refers to its loop, so that neither would ever go. Safe for threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._mappings: dict[asyncio.AbstractEventLoop, dict[K, V]] = {}

    def get(self) -> dict[K, V]:
        """The running loop's mapping."""
        with self._lock:
            for ended in [loop for loop in self._mappings if loop.is_closed()]:
                del self._mappings[ended]
            return self._mappings.setdefault(asyncio.get_running_loop(), {})
