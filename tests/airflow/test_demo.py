"""``make demo`` as a person handles it: left running, and stopped in the middle. That it ends well, CI shows by running it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
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
        self._output = directory.with_name(f"{directory.name}-{time.monotonic_ns()}.txt")
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "stack.demo", "--directory", directory, *options],
                cwd=ROOT,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def text(self) -> str:
        """What it has said so far."""
        return self._output.read_text()

    def says(self, pattern: str) -> re.Match[str]:
        """Wait until it has said this."""
        deadline = time.monotonic() + PATIENCE
        while True:
            ended = self.process.poll() is not None
            if found := re.search(pattern, self.text):
                return found
            assert not ended, f"The demo ended without a word of {pattern!r}:\n{self.text}"
            assert time.monotonic() < deadline, f"No word of {pattern!r} after {PATIENCE:g} s:\n{self.text}"
            time.sleep(0.1)

    def stop(self, number: signal.Signals) -> int:
        """Its exit code after a signal."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)

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
        try:
            running.process.wait(PATIENCE)
        finally:
            running.process.kill()  # what it started ends with it


def test_it_can_be_left_running_and_stopped_and_two_do_not_disturb_each_other(tmp_path):
    with demo(tmp_path / "kept", "--keep") as kept:
        with demo(tmp_path / "stopped") as stopped:
            stopped.says("RabbitMQ listens on amqps://")
            assert stopped.stop(signal.SIGINT) == 128 + signal.SIGINT
            assert stopped.text.endswith("Stopped: nothing is left running.\n")
            assert stopped.left() == {}
        kept.says(r"polls of the job +0 \(requests")
        page = kept.says(r"Airflow +(http://\S+?:\d+)/dags")[1]
        kept.says("login")
        kept.says("to stop")
        # Whatever proxy the machine has is not for loopback.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        assert opener.open(f"{page}/api/v2/monitor/health", timeout=30).status == 200
        assert kept.stop(signal.SIGTERM) == 0
        assert kept.left() == {}


def test_one_that_fails_says_why(tmp_path):
    with demo(tmp_path / "demo") as running:
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
            with demo(tmp_path / "demo") as another:
                another.says("make demo failed: Another demo runs in this folder.")
                assert another.process.wait(PATIENCE) == 1
            assert again.stop(signal.SIGINT) == 128 + signal.SIGINT
            assert again.left() == {}


def test_a_folder_of_something_else_is_not_deleted(tmp_path):
    (tmp_path / "precious").touch()
    with demo(tmp_path) as running:
        running.says(f"make demo failed: {tmp_path} is not empty and was not made by a demo")
        assert running.process.wait(PATIENCE) == 1
    assert (tmp_path / "precious").exists()
