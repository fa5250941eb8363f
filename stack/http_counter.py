"""A forwarding HTTP proxy that counts how often Spark was asked for a job's status."""

from __future__ import annotations

import contextlib
import threading
import urllib.error
import urllib.request
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType


class RestCounter:
    """Stands in front of a Spark master's REST server and counts requests by what they ask for.

    ``counts`` has the keys ``create``, ``kill`` and ``status``. A context manager.
    """

    def __init__(self, target_port: int) -> None:
        self.counts: Counter[str] = Counter()
        #: Called with what is asked and the body, before that is passed on; may wait, and returns what to pass on. None
        #: passes nothing on and resets the connection.
        self.on_request: Callable[[str, bytes], bytes | None] = lambda _what, body: body
        #: Called with what was asked, before the answer is passed on; may wait. False resets the connection instead.
        self.on_answer: Callable[[str], bool] = lambda _what: True
        counts, target, counter = self.counts, f"http://127.0.0.1:{target_port}", self

        class Handler(BaseHTTPRequestHandler):
            def _forward(self) -> None:
                parts = self.path.split("/")
                what = parts[3] if len(parts) > 3 else self.path
                counts[what] += 1
                body = counter.on_request(what, self.rfile.read(int(self.headers.get("Content-Length") or 0)))
                if body is None:
                    self.close_connection = True
                    return
                request = urllib.request.Request(
                    target + self.path, body or None, {"Content-Type": "application/json"}, method=self.command
                )
                try:
                    with urllib.request.urlopen(request, timeout=30) as answer:
                        status, content = answer.status, answer.read()
                except urllib.error.HTTPError as error:
                    status, content = error.code, error.read()
                except OSError:
                    status, content = 502, b""
                if not counter.on_answer(what):
                    self.close_connection = True
                    return
                with contextlib.suppress(ConnectionError):
                    self._answer(status, content)

            def _answer(self, status: int, content: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = _forward  # noqa: N815 - the names that http.server looks for

            def log_message(self, *_arguments: object) -> None:
                """Say nothing: what counts is counted."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = int(self._server.server_address[1])

    def __enter__(self) -> RestCounter:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
