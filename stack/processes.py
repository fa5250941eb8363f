"""Starting, watching and stopping the real parts."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from stack import leash

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

#: Ports given out by this process. The kernel may offer one again before it is used.
_given: set[int] = set()


class StartFailed(RuntimeError):
    """A part did not start; the message ends with the last lines of its log."""


def free_port() -> int:
    """A TCP port on loopback that nobody uses."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port not in _given:
            _given.add(port)
            return port


class Process:
    """A command that runs until it is stopped, with everything it starts. Its output goes to a log file.

    :param grace: seconds between SIGTERM and SIGKILL.
    """

    def __init__(
        self, name: str, command: Sequence[str], *, log: Path, environment: Mapping[str, str], grace: float = 5.0
    ) -> None:
        self.name = name
        self.log = log
        self.command = list(command)
        self.environment = dict(environment)
        self.grace = grace
        self._leash: subprocess.Popen[bytes] | None = None

    def start(self) -> Process:
        """Start it; does not wait until it is of use."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._leash = subprocess.Popen(
                [sys.executable, "-I", "-S", leash.__file__, str(self.grace), *self.command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment,
                start_new_session=True,
            )
        return self

    @property
    def is_running(self) -> bool:
        """Whether the command has not ended."""
        return self._leash is not None and self._leash.poll() is None

    def pids(self, *, containing: str = "") -> list[int]:
        """The processes of the command, parents first; those whose command line has ``containing`` in it."""
        if self._leash is None:
            return []
        return [pid for pid in leash.descendants(self._leash.pid) if containing in command_line(pid)]

    def signal(self, number: signal.Signals, *, containing: str = "") -> None:
        """Send a signal to the processes of the command whose command line has ``containing`` in it.

        After SIGSTOP, wait until they have stopped: a thread that runs takes some time to hear of it.
        """
        pids = self.pids(containing=containing)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        while number == signal.SIGSTOP and any(_runs(pid) for pid in pids):
            time.sleep(0.005)

    def wait_until(self, ready: Callable[[], bool], *, timeout: float) -> None:
        """Wait until ``ready`` answers True.

        :raises StartFailed: the command ended, or ``timeout`` seconds passed.
        """
        deadline = time.monotonic() + timeout
        while not ready():
            if not self.is_running:
                raise StartFailed(f"{self.name} ended while starting.\n{self.tail()}")
            if time.monotonic() > deadline:
                raise StartFailed(f"{self.name} was not ready after {timeout:g} s.\n{self.tail()}")
            time.sleep(0.1)

    def stop(self, *, wait: bool = True) -> None:
        """Stop it and all it started. May be called twice.

        :param wait: False only tells it to stop, so that several can stop at the same time; call again to wait.
        """
        if self._leash is None:
            return
        if self._leash.stdin is not None and not self._leash.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self._leash.stdin.close()
        if wait:
            self._leash.wait()
            self._leash = None

    def tail(self, lines: int = 25) -> str:
        """The last lines of the log."""
        text = self.log.read_text(errors="replace").splitlines()[-lines:] if self.log.exists() else []
        return "\n".join([f"The last lines of {self.log}:", *text])


def cpu_seconds(pid: int, *, with_children: bool = False) -> float:
    """The CPU that a process has used, in seconds; of its ended children, too.

    :raises OSError: it is gone.
    """
    # After the name in parentheses, which may hold anything: proc(5), fields 14 to 17.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11 : 15 if with_children else 13])) / os.sysconf("SC_CLK_TCK")


def _runs(pid: int) -> bool:
    """Whether a thread of a process does anything but being stopped or dead."""
    states = set()
    for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            states.add(stat.read_text().rpartition(")")[2].split()[0])
    return bool(states - set("TtZX"))


def command_line(pid: int) -> str:
    """The command line of a process; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def base_environment(**more: str) -> dict[str, str]:
    """What the parts need of this process's environment, and nothing that would change what they do."""
    kept = ("HOME", "LANG", "LC_ALL", "PATH", "TMPDIR", "JAVA_HOME", "SSL_CERT_FILE")
    return {**{name: os.environ[name] for name in kept if name in os.environ}, **more}
