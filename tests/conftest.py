"""The real parts, started once for all tests that ask for them, and stopped after the last."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

from stack.airflow import Airflow
from stack.broker import Broker
from stack.http_counter import RestCounter
from stack.processes import free_port
from stack.proxy import Proxy
from stack.spark import SparkCluster

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow_rabbitmq_spark.amqp.endpoint import Endpoint

ROOT = Path(__file__).parent.parent
SPARK_PYTHON = ROOT / ".venv-spark" / "bin" / "python"
APPLICATIONS = ROOT / "tests" / "applications"


# How long an example takes says something about the machine, and nothing about the code.
hypothesis.settings.register_profile("tests", deadline=None)
hypothesis.settings.load_profile("tests")


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A RabbitMQ node that listens on TLS only."""
    with Broker(tmp_path_factory.mktemp("broker")) as running:
        yield running


@pytest.fixture
def broker_endpoint(broker: Broker) -> Endpoint:
    """The node's endpoint, for the user who may do everything."""
    return broker.endpoint()


@pytest.fixture(scope="session")
def spark_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkCluster]:
    """A Spark standalone cluster with one worker, which has room for many drivers that do little."""
    with SparkCluster(tmp_path_factory.mktemp("spark"), SPARK_PYTHON, cores=24, memory="24g") as running:
        yield running


@pytest.fixture(scope="session")
def rest_counter(spark_cluster: SparkCluster) -> Iterator[RestCounter]:
    """Counts what Airflow asks the Spark master."""
    with RestCounter(spark_cluster.rest_port) as counter:
        yield counter


@pytest.fixture(scope="session")
def listener_proxy(broker: Broker) -> Iterator[Proxy]:
    """What only Airflow's listener reaches the broker through, so that it can be cut off and nobody else."""
    with Proxy(broker.port) as running:
        yield running


@pytest.fixture(scope="session")
def listener_timings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where Airflow's processes write down how long they were in the listener."""
    return tmp_path_factory.mktemp("listener") / "timings.jsonl"


@pytest.fixture(scope="session")
def airflow_stack(
    tmp_path_factory: pytest.TempPathFactory,
    broker: Broker,
    spark_cluster: SparkCluster,
    rest_counter: RestCounter,
    listener_timings: Path,
) -> Iterator[Airflow]:
    """An Airflow whose DAG folder holds the examples and the tests' own DAGs."""
    folder = tmp_path_factory.mktemp("airflow")
    dags = folder / "dags"
    dags.mkdir()
    (dags / "examples").symlink_to(ROOT / "dags")
    (dags / "tests").symlink_to(ROOT / "tests" / "airflow" / "dags")
    with Airflow(
        folder,
        dags=dags,
        connections={
            "rabbitmq_default": broker.connection(),
            "spark_default": spark_cluster.connection(rest_counter.port),
            "rabbitmq_with_page": f"{broker.connection()}&management_url=https%3A%2F%2Fpage.example.com:15671",
            "rabbitmq_away": f"amqp://guest:guest@127.0.0.1:{free_port()}/",
        },
        environment={
            "AIRFLOW__CORE__TEST_CONNECTION": "Enabled",
            "MODELS_DIR": str(folder / "models"),
            "TEST_APPLICATIONS": str(APPLICATIONS),
            # Tells of the DAGs that are made for it, and of nobody else's.
            "AIRFLOW__RABBITMQ_LISTENER__ENABLED": "True",
            "AIRFLOW__RABBITMQ_LISTENER__RABBITMQ_CONN_ID": "listener_broker",
            "AIRFLOW__RABBITMQ_LISTENER__EXCHANGE": "tests.listener",
            "AIRFLOW__RABBITMQ_LISTENER__DAG_ALLOW": "listener_*",
            "AIRFLOW__RABBITMQ_LISTENER__DAG_DENY": "*_denied",
            "AIRFLOW__CORE__PLUGINS_FOLDER": str(ROOT / "tests" / "airflow" / "plugins"),
            "LISTENER_TIMINGS": str(listener_timings),
        },
    ) as running:
        yield running


@pytest.fixture(autouse=True)
def _quiet_pika() -> None:
    """What pika logs of a refused connection is not a test's business."""
    logging.getLogger("pika").setLevel(logging.CRITICAL)
