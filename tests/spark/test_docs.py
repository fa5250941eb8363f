"""The documentation's examples that need Spark, run by hand as a reader would."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from typing import TYPE_CHECKING

from airflow_rabbitmq_spark.job import bundle
from tests.conftest import SPARK_PYTHON
from tests.markdown import example

if TYPE_CHECKING:
    from pathlib import Path


def spark_submit(folder: Path, *arguments: str) -> str:
    """What ``spark-submit`` of the Spark environment prints; no cluster, so that Spark is up in seconds."""
    path = f"{SPARK_PYTHON.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["spark-submit", "--master", "local[1]", "--conf", "spark.ui.enabled=false", *arguments],
        cwd=folder,
        env={**os.environ, "PATH": path, "SPARK_LOCAL_IP": "127.0.0.1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout + done.stderr


def test_the_commands_for_running_by_hand(tmp_path: Path):
    """Both commands of docs/applications.md, each in the environment that it is for."""
    (tmp_path / "train.py").write_text(example("applications.md", "python application", "accuracies").text)
    write, submit = example("applications.md", "sh", "spark-submit").text.splitlines()
    interpreter, *arguments = shlex.split(write)
    assert interpreter == "python"
    subprocess.run([sys.executable, *arguments], cwd=tmp_path, check=True, capture_output=True)
    program, flag, pattern, application = shlex.split(submit)
    assert program == "spark-submit"
    (zipped,) = tmp_path.glob(pattern)
    said = spark_submit(tmp_path, flag, zipped.name, application)
    for line in example("applications.md", "text application").text.splitlines():
        assert line in said


def test_streaming_reports_each_batch(tmp_path: Path):
    (tmp_path / "stream.py").write_text(example("applications.md", "python spark").text)
    orders = tmp_path / "orders"
    orders.mkdir()
    for number in range(3):
        lines = [json.dumps({"id": number * 10 + index, "price": 1.5}) for index in range(number + 1)]
        (orders / f"{number}.json").write_text("\n".join(lines))
    said = spark_submit(
        tmp_path, "--py-files", str(bundle.write(tmp_path)), "stream.py", str(orders), str(tmp_path / "totals")
    )
    for number in range(3):
        assert f"batch {number}" in said
    assert "result: {'batches': 3, 'rows': 6}" in said
    assert list((tmp_path / "totals").glob("*.parquet"))
