"""Runs a command and sees to it that nothing of it is left: ``python leash.py GRACE COMMAND [ARG...]``.

It ends the command when its own standard input ends, which is also what happens when whoever started it was killed.
All descendants end with it, daemons too: this process adopts those whose parents are gone (PR_SET_CHILD_SUBREAPER,
prctl(2)). Only the standard library, so that it starts at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36


def children(parent: int) -> list[int]:
    """The processes whose parent is ``parent``."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                # After the name in parentheses, which may hold anything: state, then the parent.
                if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                    found.append(int(entry.name))
    return found


def descendants(parent: int) -> list[int]:
    """All processes below ``parent``, parents before children."""
    found = children(parent)
    for child in found:
        found.extend(children(child))
    return found


def kill_all(parent: int) -> None:
    """SIGKILL everything below ``parent``, again until nothing is left: the dying leave orphans."""
    for _ in range(100):
        remaining = descendants(parent)
        if not remaining:
            return
        for pid in remaining:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.02)


def main() -> int:
    """Run the command until it ends or has to; exit with its code."""
    grace, command = float(sys.argv[1]), sys.argv[2:]
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # Ctrl-C in a terminal goes to everybody; who ends what, and when, is decided by whoever holds the other end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    let_go = threading.Event()

    def listen() -> None:
        while os.read(0, 1024):
            pass
        let_go.set()

    threading.Thread(target=listen, daemon=True).start()
    while process.poll() is None and not let_go.is_set():
        let_go.wait(0.1)
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace)
    code = process.poll()
    kill_all(os.getpid())
    return code if code is not None and code >= 0 else 1


if __name__ == "__main__":
    sys.exit(main())
