"""The real parts, started once for all tests that ask for them, and stopped after the last."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from stack.airflow import Airflow
from stack.broker import Broker
from stack.http_counter import RestCounter
from stack.spark import SparkCluster

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow_rabbitmq_spark.amqp.endpoint import Endpoint

ROOT = Path(__file__).parent.parent
SPARK_PYTHON = ROOT / ".venv-spark" / "bin" / "python"
APPLICATIONS = ROOT / "tests" / "applications"


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
def airflow_stack(
    tmp_path_factory: pytest.TempPathFactory, broker: Broker, spark_cluster: SparkCluster, rest_counter: RestCounter
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
        },
        environment={
            "MODELS_DIR": str(folder / "models"),
            "TEST_APPLICATIONS": str(APPLICATIONS),
        },
    ) as running:
        yield running


@pytest.fixture(autouse=True)
def _quiet_pika() -> None:
    """What pika logs of a refused connection is not a test's business."""
    logging.getLogger("pika").setLevel(logging.CRITICAL)
