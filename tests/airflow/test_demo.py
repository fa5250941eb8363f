"""``make demo`` as a person handles it: left running, and stopped in the middle. That it ends well, CI shows by running it."""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
#: Seconds for the next line, on a machine that does much else.
PATIENCE = 300.0
pytestmark = pytest.mark.timeout(900)


class Demo:
    """A demo in a directory of its own, as in a clone of its own."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.directory = directory
        self.text = ""
        self._lines: queue.Queue[str] = queue.Queue()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "stack.demo", "--directory", directory, *options],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def says(self, text: str) -> str:
        """The next line with ``text`` in it."""
        while line := self._lines.get(timeout=PATIENCE):
            self.text += line
            if text in line:
                return line
        pytest.fail(f"The demo ended without a word of {text!r}:\n{self.text}")

    def stop(self, number: signal.Signals) -> int:
        """Its exit code after a signal."""
        self.process.send_signal(number)
        code = self.process.wait(PATIENCE)
        self._reader.join()
        while line := self._lines.get():
            self.text += line
        return code

    def left(self) -> dict[str, int]:
        """The processes that have to do with its directory, by how they were started."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                command, environment = ((folder / name).read_bytes() for name in ("cmdline", "environ"))
            except OSError:
                continue
            if str(self.directory).encode() in command + environment:
                found[command.replace(b"\0", b" ").decode(errors="replace")] = int(folder.name)
        return found


@contextmanager
def demo(directory: Path, *options: str):
    running = Demo(directory, *options)
    try:
        yield running
    finally:
        running.process.terminate()
        running.process.wait(PATIENCE)
        running.process.stdout.close()


def test_it_can_be_left_running_and_stopped_at_any_moment_and_two_do_not_disturb_each_other(tmp_path):
    with demo(tmp_path / "kept", "--keep") as kept:
        with demo(tmp_path / "stopped") as stopped:
            stopped.says("RabbitMQ listens on amqps://")
            assert stopped.stop(signal.SIGINT) == 128 + signal.SIGINT
            assert stopped.text.endswith("Stopped: nothing is left running.\n")
            assert stopped.left() == {}
        assert "0 (requests" in kept.says("polls of the job")
        page = re.search(r"http://\S+?:\d+", kept.says("Airflow    http"))
        kept.says("login")
        kept.says("to stop")
        assert urllib.request.urlopen(f"{page[0]}/api/v2/monitor/health", timeout=30).status == 200
        assert any("airflow" in command for command in kept.left())
        assert kept.stop(signal.SIGTERM) == 0
        assert kept.left() == {}


def test_one_that_fails_says_why(tmp_path):
    with demo(tmp_path / "demo") as running:
        running.says("RabbitMQ listens")
        with demo(tmp_path / "demo") as second:
            second.says("make demo failed: Another demo runs in this folder.")
            assert second.process.wait(PATIENCE) == 1
        running.says("triggered")
        worker = next(
            pid for command, pid in running.left().items() if re.match(r"\S*java .*deploy.worker.Worker", command)
        )
        os.kill(worker, signal.SIGKILL)
        running.says("make demo failed: Spark worker has ended in the middle of the run.")
        running.says("The last lines of")
        assert running.process.wait(PATIENCE) == 1
        assert running.left() == {}
        with demo(tmp_path / "demo") as again:
            again.says("Spark")
            assert again.stop(signal.SIGINT) == 128 + signal.SIGINT
            assert again.left() == {}
