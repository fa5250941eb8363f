"""What people get wrong around a job: the task fails at once, says what to do, and leaves no queue behind.

The operator runs as in a worker, with a real broker; no scheduler is needed for it. That each message is right in each
variant is shown where it is made, in tests/unit and tests/broker.
"""

from __future__ import annotations

import json
import os
from types import SimpleNamespace
from urllib.parse import quote

import pytest
import trustme

from airflow_rabbitmq_spark import exceptions as ours
from airflow_rabbitmq_spark.operators.spark_job import SparkJobOperator
from stack.broker import Broker
from stack.processes import free_port


@pytest.fixture(scope="module")
def open_broker(tmp_path_factory):
    """A broker that listens on a plain port too."""
    with Broker(tmp_path_factory.mktemp("open-broker"), plain=True) as running:
        yield running


@pytest.fixture
def run(monkeypatch, open_broker, tmp_path):
    """Run a task with these connections, and give what it fails with."""

    def fail(rabbitmq: str | None, spark: str | None = None, **arguments) -> Exception:
        for name, value in (("RABBITMQ_DEFAULT", rabbitmq), ("SPARK_DEFAULT", spark)):
            if value is not None:
                monkeypatch.setenv(f"AIRFLOW_CONN_{name}", value)
        task = SparkJobOperator(
            **{"task_id": "train", "application": "/a.py", "bundle": os.fspath(tmp_path), **arguments}
        )
        ti = SimpleNamespace(
            dag_id="d", task_id="train", run_id="r", map_index=-1, try_number=1, max_tries=0, xcom_push=lambda **_: None
        )
        with pytest.raises(ours.RabbitMQSparkError) as caught:
            task.execute({"ti": ti})
        error: BaseException | None = caught.value
        while error is not None:
            assert open_broker.password not in repr(error)
            error = error.__cause__ or error.__context__
        return caught.value

    return fail


def spark_at(rest_port: int) -> str:
    return json.dumps(
        {"conn_type": "spark", "host": "spark://127.0.0.1", "port": free_port(), "extra": {"rest-port": rest_port}}
    )


CASES = {
    "no connection": (
        lambda _broker, _tmp: None,
        ours.ConfigurationError,
        ["There is no connection 'rabbitmq_default'", "AIRFLOW_CONN_RABBITMQ_DEFAULT"],
    ),
    "broker down": (
        lambda broker, _tmp: broker.connection().replace(str(broker.port), str(free_port())),
        ours.BrokerUnreachable,
        ["nothing listens on port", "Is the broker running?"],
    ),
    "plain to the TLS port": (
        lambda broker, _tmp: broker.uri().replace("amqps://", "amqp://") + "?tls=false",
        ours.ProtocolMismatch,
        ["speaks TLS and the connection is plain"],
    ),
    "TLS to the plain port": (
        lambda broker, _tmp: broker.connection().replace(str(broker.port), str(broker.plain_port)),
        ours.ProtocolMismatch,
        ["does not speak TLS"],
    ),
    "CA not there": (
        lambda broker, _tmp: f"{broker.uri()}?ca_certificate=/nowhere/ca.pem",
        ours.ConfigurationError,
        ["ca_certificate", "/nowhere/ca.pem"],
    ),
    "CA no PEM": (
        lambda broker, _tmp: f"{broker.uri()}?ca_certificate={quote('not a certificate', safe='')}",
        ours.ConfigurationError,
        ["ca_certificate", "PEM"],
    ),
    "another CA": (
        lambda broker, tmp: f"{broker.uri()}?ca_certificate={quote(other_ca(tmp), safe='')}",
        ours.TLSFailed,
        ["certificate is refused", "ca_certificate"],
    ),
    "another host": (
        lambda broker, _tmp: f"{broker.connection()}&server_name=rabbit.example.com",
        ours.TLSFailed,
        ["it is not for 'rabbit.example.com'", "127.0.0.1"],
    ),
    "wrong password": (
        lambda broker, _tmp: broker.connection().replace(quote(broker.password, safe=""), "wrong"),
        ours.AuthenticationFailed,
        ["was refused for user 'airflow'"],
    ),
    "no such vhost": (
        lambda broker, _tmp: broker.connection().replace("%2F?", "nowhere?"),
        ours.VirtualHostRefused,
        ["has no virtual host 'nowhere'", "rabbitmqctl add_vhost 'nowhere'"],
    ),
    "may not declare": (
        lambda broker, _tmp: broker.connection().replace("airflow:", "nobody:", 1),
        ours.AccessRefused,
        ["The user may not declare what a job needs", "rabbitmqctl set_permissions -p '/' 'nobody'"],
    ),
}


def other_ca(folder) -> str:
    path = folder / "other.pem"
    trustme.CA().cert_pem.write_to_path(path)
    return os.fspath(path)


@pytest.mark.parametrize("case", CASES)
def test_a_wrong_connection_to_the_broker(run, open_broker, tmp_path, case):
    connection, kind, words = CASES[case]
    error = run(connection(open_broker, tmp_path), spark_at(free_port()))
    assert type(error) is kind, error
    for word in words:
        assert word in str(error)


def test_the_spark_connection_does_not_exist(run, open_broker):
    error = run(open_broker.connection(), conn_id="nowhere")
    assert "The Spark connection 'nowhere' does not exist." in str(error)


def test_no_spark_master(run, open_broker):
    error = run(open_broker.connection(), spark_at(free_port()))
    assert type(error) is ours.MasterUnreachable
    assert "No Spark master answers at 127.0.0.1" in str(error)


def test_a_bundle_that_cannot_be_written(run, open_broker):
    error = run(open_broker.connection(), spark_at(free_port()), bundle="/nowhere")
    assert type(error) is ours.ConfigurationError
    assert "Set `bundle` to a directory that this worker can write and Spark's workers can read." in str(error)


def test_none_of_them_left_a_queue(run, open_broker):
    run(open_broker.connection(), spark_at(free_port()))
    left = open_broker.queues()
    # For what jobs refuse, of all jobs together; it was declared with the first job.
    assert {queue for queue in left if ".job." in queue or ".will." in queue} == set()
    assert len(left) == 1, left
