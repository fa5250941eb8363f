"""An event loop on a thread of its own, for code that blocks.

Heartbeats are answered there while the caller computes: a broker never takes a busy caller for a dead one.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")


class Background:
    """Runs coroutines on a daemon thread's event loop.

    A daemon, because a thread that talks to a broker must never keep a finished program alive.
    """

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            self.loop.close()

    @property
    def is_running(self) -> bool:
        """Whether the thread can still take work."""
        return self._thread.is_alive() and not self.loop.is_closed()

    def call(self, coroutine: Coroutine[Any, Any, T], *, timeout: float | None = None) -> T:
        """Run ``coroutine`` there and wait here for what it returns or raises.

        :param timeout: seconds; past it the coroutine is cancelled.
        :raises TimeoutError: the time ran out.
        """
        future = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        try:
            return future.result(timeout)
        except concurrent.futures.TimeoutError:  # a class of its own before Python 3.11
            future.cancel()
            raise TimeoutError from None
        except BaseException:
            # Also when the waiting itself is interrupted, by Ctrl-C or by a signal handler that raises.
            future.cancel()
            raise

    def stop(self) -> None:
        """End what still runs and the thread. May be called twice."""
        if not self.is_running:
            return

        async def drain() -> None:
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=2) if tasks else None

        with contextlib.suppress(Exception):
            self.call(drain(), timeout=5)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(timeout=5)
