"""What importing each part costs and brings with it, each in a process of its own."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import airflow_rabbitmq_spark

PACKAGE = Path(airflow_rabbitmq_spark.__file__).parent
#: What only a running task imports. That no DAG file does is seen by what the others load.
ONLY_IN_TASKS = {"airflow_rabbitmq_spark.hooks.multiplexers", "airflow_rabbitmq_spark.sensors.receiver"}


def modules(*folders: str) -> list[str]:
    return [
        f"airflow_rabbitmq_spark.{folder}.{found.name}"
        for folder in folders
        for found in pkgutil.iter_modules([str(PACKAGE / folder)])
    ]


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_drivers_side_needs_neither_airflow_nor_spark():
    names = ["airflow_rabbitmq_spark.exceptions", *modules("amqp", "job")]
    assert "airflow_rabbitmq_spark.job.session" in names
    run(
        "import importlib, sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('airflow', 'pyspark', 'py4j'):\n"
        "            raise AssertionError('imports ' + name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
    )


def test_the_package_itself_and_the_provider_info_import_nothing():
    loaded = json.loads(
        run(
            "import sys, json\n"
            "before = set(sys.modules)\n"
            "from airflow_rabbitmq_spark.provider_info import get_provider_info\n"
            "get_provider_info()\n"
            "print(json.dumps(sorted(set(sys.modules) - before - {'__future__', 'typing'})))\n"
        )
    )
    foreign = [name for name in loaded if name.split(".")[0] not in sys.stdlib_module_names]
    assert foreign == ["airflow_rabbitmq_spark", "airflow_rabbitmq_spark.provider_info"]


@pytest.mark.parametrize("module", sorted({*modules("operators", "sensors", "hooks", "notifications")} - ONLY_IN_TASKS))
def test_a_dag_file_pays_only_for_what_it_writes_down(module):
    # What Airflow and the operator that ours is based on load, every DAG file pays already.
    loaded = json.loads(
        run(
            "import sys, json\n"
            "import airflow.sdk, airflow.providers.apache.spark.operators.spark_submit\n"
            "before = set(sys.modules)\n"
            f"import {module}\n"
            "print(json.dumps(sorted(set(sys.modules) - before)))\n"
        )
    )
    assert module in loaded
    paid = {name.split(".")[0] for name in loaded}
    assert not paid & {"pika", "pyspark", "ssl", "asyncio", "requests", "httpx"}
    assert [
        name for name in loaded if name.startswith(("airflow_rabbitmq_spark.amqp", "airflow_rabbitmq_spark.job"))
    ] == []


def test_airflow_alone_brings_neither_pika_nor_pyspark():
    # Otherwise the test above would say nothing.
    run(
        "import sys, airflow.sdk, airflow.providers.apache.spark.operators.spark_submit\n"
        "assert not {'pika', 'pyspark'} & set(sys.modules)\n"
    )
