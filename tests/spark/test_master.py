"""A master that does not answer, or something else that does: what is said about it."""

from __future__ import annotations

import json
import socket
import threading

import pytest

from airflow_rabbitmq_spark.exceptions import MasterUnreachable, SubmissionFailed
from airflow_rabbitmq_spark.hooks.spark_standalone import SparkStandaloneHook, Submission
from stack.processes import free_port
from stack.spark import SparkCluster
from tests.conftest import SPARK_PYTHON

NOTHING = Submission("file:/nowhere.zip", [], {}, {})


@pytest.fixture
def hook(monkeypatch):
    def make(port: int, *, before: str = "", **extra) -> SparkStandaloneHook:
        connection = {"conn_type": "spark", "host": f"spark://{before}127.0.0.1:{port}", "extra": extra}
        monkeypatch.setenv("AIRFLOW_CONN_MASTER", json.dumps(connection))
        return SparkStandaloneHook("master")

    return make


@pytest.fixture(scope="module")
def without_rest(tmp_path_factory):
    """A master whose REST submission is off."""
    cluster = SparkCluster(tmp_path_factory.mktemp("without-rest"), SPARK_PYTHON, rest=False)
    (cluster.directory / "conf").mkdir()

    def listens() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((cluster.host, cluster.port)) == 0

    cluster.master.start()
    try:
        cluster.master.wait_until(listens, timeout=60)
        yield cluster
    finally:
        cluster.stop()


def test_rest_submission_is_off(hook, without_rest):
    rest_port = free_port()
    with pytest.raises(MasterUnreachable, match=f"is up, but nothing answers at .*:{rest_port}") as caught:
        hook(without_rest.port, **{"rest-port": rest_port}).submit(NOTHING)
    assert "spark.master.rest.enabled=true" in str(caught.value)
    assert "or set 'rest-port' in the extra of connection 'master'" in str(caught.value)


def test_the_master_is_down(hook):
    port, rest_port = free_port(), free_port()
    with pytest.raises(MasterUnreachable, match=r"No Spark master answers at 127\.0\.0\.1") as caught:
        hook(port, **{"rest-port": rest_port}).submit(NOTHING)
    assert f"RPC port {port}" in str(caught.value)
    assert "host and port of connection 'master'" in str(caught.value)


def test_the_rest_port_is_the_web_pages(hook, spark_cluster):
    wrong = hook(spark_cluster.port, **{"rest-port": spark_cluster.web_port})
    with pytest.raises(SubmissionFailed, match="is not a Spark REST submission server") as caught:
        wrong.submit(NOTHING)
    assert not caught.value.transient
    assert "8080 is its web page" in str(caught.value)


def test_the_rest_port_is_the_rpc_port(hook, spark_cluster):
    wrong = hook(spark_cluster.port, **{"rest-port": spark_cluster.port})
    with pytest.raises(SubmissionFailed, match="set 'rest-port' in the extra of connection 'master'"):
        wrong.submit(NOTHING)


def test_https_to_a_plain_rest_server(hook, spark_cluster):
    wrong = hook(spark_cluster.port, **{"rest-port": spark_cluster.rest_port, "rest-scheme": "https"})
    with pytest.raises(SubmissionFailed, match="Set 'rest-scheme' in the extra of connection 'master'"):
        wrong.submit(NOTHING)


def test_the_master_refuses(hook, spark_cluster):
    refused = Submission("file:/nowhere.zip", [], {"spark.driver.memory": "lots"}, {})
    with pytest.raises(SubmissionFailed, match=r"The Spark master of connection 'master' refused the application: \S"):
        hook(spark_cluster.port, **{"rest-port": spark_cluster.rest_port}).submit(refused)


def test_a_driver_that_the_master_does_not_know(hook, spark_cluster):
    there = hook(spark_cluster.port, **{"rest-port": spark_cluster.rest_port})
    assert there.kill("driver-of-nobody") is False
    assert there.status("driver-of-nobody")["success"] is False
    there.kill_quietly("driver-of-nobody")
    there.kill_quietly(None)
    hook(free_port(), **{"rest-port": free_port()}).kill_quietly("driver-of-nobody")


def test_a_standby_is_passed_over(hook, spark_cluster):
    """As a standby master answers (org.apache.spark.deploy.master.Master), on the same port of another address."""
    answer = json.dumps({"action": "CreateSubmissionResponse", "message": "Current state is not alive: STANDBY."})
    standby = socket.create_server(("127.0.0.2", spark_cluster.rest_port))

    def serve() -> None:
        connection, _ = standby.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(
                f"HTTP/1.1 200 OK\r\nContent-Length: {len(answer)}\r\nConnection: close\r\n\r\n{answer}".encode()
            )

    threading.Thread(target=serve, daemon=True).start()
    try:
        both = hook(spark_cluster.port, before="127.0.0.2:7077,", **{"rest-port": spark_cluster.rest_port})
        assert both.kill("driver-of-nobody") is False
    finally:
        standby.close()
