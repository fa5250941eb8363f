"""A TCP proxy that breaks connections the ways networks do."""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType


class Proxy:
    """Forwards a free loopback port to ``target_port`` until it is told otherwise. A context manager.

    One thread moves all bytes, so that every fault takes effect for all connections at once.
    """

    def __init__(self, target_port: int, *, target_host: str = "127.0.0.1") -> None:
        self._target = (target_host, target_port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.port = int(self._listener.getsockname()[1])
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._peer: dict[socket.socket, socket.socket] = {}
        self._clients: set[socket.socket] = set()
        self._left_open: list[socket.socket] = []
        self._lock = threading.RLock()
        self._silent = False
        self._delay = 0.0
        self._refusing = False
        self._stopped = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        #: How many connections were accepted.
        self.accepted = 0

    def __enter__(self) -> Proxy:
        self._thread.start()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self._stopped = True
        self._thread.join(timeout=5)
        self.cut()
        for connection in self._left_open:
            connection.close()
        self._listener.close()

    @property
    def open(self) -> int:
        """How many connections are open now."""
        return len(self._peer) // 2

    def cut(self) -> None:
        """Reset every connection (RST); new ones are forwarded."""
        with self._lock:
            for connection in list(self._peer):
                with contextlib.suppress(OSError):
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self._drop(connection)

    def vanish(self) -> None:
        """Reset the clients' ends and leave the server's open and silent, as when a plug is pulled; new connections are
        forwarded. The server finds out by its heartbeats, if it has any.
        """
        with self._lock:
            for client in self._clients & self._peer.keys():
                server = self._peer.pop(client)
                del self._peer[server]
                for end in (client, server):
                    self._selector.unregister(end)
                with contextlib.suppress(OSError):
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.close()
                self._left_open.append(server)
            self._clients.clear()

    def black_hole(self) -> None:
        """Swallow every byte, of new connections too; nothing is closed."""
        self._silent = True

    def refuse(self) -> None:
        """Reset every connection, new ones too."""
        self._refusing = True
        self.cut()

    def slow(self, seconds: float) -> None:
        """Hold up each piece of data for ``seconds``."""
        self._delay = seconds

    def restore(self) -> None:
        """Forward again. Bytes that were swallowed are gone, so connections from before are reset."""
        if self._silent:
            self.cut()
        self._silent, self._delay, self._refusing = False, 0.0, False

    def _run(self) -> None:
        while not self._stopped:
            for key, _ in self._selector.select(timeout=0.05):
                with self._lock:
                    if key.fileobj is self._listener:
                        self._accept()
                    elif isinstance(key.fileobj, socket.socket) and key.fileobj in self._peer:
                        self._move(key.fileobj)

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:
            return
        self.accepted += 1
        try:
            if self._refusing:
                raise ConnectionRefusedError
            server = socket.create_connection(self._target, timeout=5)
        except OSError:
            client.close()
            return
        for one, other in ((client, server), (server, client)):
            self._peer[one] = other
            self._selector.register(one, selectors.EVENT_READ)
        self._clients.add(client)

    def _move(self, source: socket.socket) -> None:
        try:
            data = source.recv(65536)
            if data and self._delay:
                time.sleep(self._delay)
            if data and not self._silent:
                self._peer[source].sendall(data)
        except OSError:
            data = b""
        if not data:
            self._drop(source)

    def _drop(self, connection: socket.socket) -> None:
        for end in (connection, self._peer.get(connection)):
            if end is not None and end in self._peer:
                del self._peer[end]
                self._clients.discard(end)
                with contextlib.suppress(KeyError, ValueError):
                    self._selector.unregister(end)
                end.close()
