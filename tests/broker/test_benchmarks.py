"""The benchmarks still run, and what they count is right; their times are measured on a quiet machine, not here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
MODULES = sorted(
    path.stem for path in (ROOT / "benchmarks").glob("*.py") if "argparse" in path.read_text(encoding="utf-8")
)


def benchmark(name, *arguments):
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def rows(name, *arguments):
    return [json.loads(line) for line in benchmark(name, *arguments, "--json").splitlines()]


def test_waits():
    ours, floor = rows("waits", "--only", "ours", "sleep", "--waits", "20", "--idle", "1")
    assert list(ours) == [
        "implementation",
        "waits",
        "connections",
        "kib_per_wait",
        "broker_kib_per_wait",
        "setup_s",
        "setup_cpu_s",
        "idle_cpu_percent",
        "p50_ms",
        "p99_ms",
        "reconnect_s",
        "lost",
    ]
    assert (ours["waits"], ours["connections"], ours["lost"]) == (20, 1, 0)
    assert None not in ours.values()
    assert list(floor) == list(ours)
    assert (floor["waits"], floor["connections"], floor["lost"]) == (20, 0, 0)


def test_lost():
    (row,) = rows("lost", "--sessions", "2", "--stopped", "0")
    assert (row["signal"], row["sessions"]) == ("SIGKILL", 2)


@pytest.mark.parametrize("name", MODULES)
def test_each_says_what_it_measures(name):
    """Those that need an Airflow or the peers' environments are at least importable."""
    assert "--" in benchmark(name, "--help")


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "dags").glob("*.py")), ids=lambda path: path.stem)
def test_the_dags_can_be_imported(path, tmp_path):
    environment = {**os.environ, "AIRFLOW_HOME": str(tmp_path), "SPARK_HOME": str(tmp_path), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run([sys.executable, path], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
