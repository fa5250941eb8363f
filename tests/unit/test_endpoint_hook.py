"""From an Airflow connection, however it was set, to an endpoint."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import subprocess
import sys

import pytest
import trustme

from airflow_rabbitmq_spark import __version__
from airflow_rabbitmq_spark.exceptions import ConfigurationError
from airflow_rabbitmq_spark.hooks.rabbitmq import AMQPHook, AMQPSHook, RabbitMQHook, default_connection_name

PASSWORD = "canary-pässword"
PEM = trustme.CA().cert_pem.bytes().decode()


@pytest.fixture
def connection(monkeypatch):
    """Set the connection ``broker`` as people do: by an environment variable."""

    def set_it(value: object) -> RabbitMQHook:
        text = value if isinstance(value, str) else json.dumps(value)
        monkeypatch.setenv("AIRFLOW_CONN_BROKER", text)
        return RabbitMQHook("broker")

    return set_it


def described(value: object, connection) -> str:
    hook = connection(value)
    endpoint = hook.endpoint()
    assert asyncio.run(hook.aendpoint()) == endpoint
    return endpoint.describe()


def test_the_uri_of_the_documentation(connection):
    ca = base64.b64encode(PEM.encode()).decode()
    endpoint = connection(f"amqps://user:pw@host:5671/vhost?ca_certificate_base64={ca}").endpoint()
    assert endpoint.describe() == "amqps://user@host:5671/vhost"
    assert endpoint.tls.ca.strip() == PEM.strip()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("amqps://u:p@h/v", "amqps://u@h:5671/v"),
        ("amqp://u:p@h/v", "amqp://u@h:5672/v"),
        ("amqps://u:p@h:7", "amqps://u@h:7/%2F"),
        ("amqps://u:p@h:7/", "amqps://u@h:7/%2F"),  # Airflow cannot tell it from the one above
        ("amqps://u:p@h/?virtual_host=", "amqps://u@h:5671/"),
        ("amqps://u:p@h/%2F", "amqps://u@h:5671/%2F"),
        ("amqps://u:p@h/a%2Fb", "amqps://u@h:5671/a%2Fb"),
        ("amqps://u:p@a%3A1%2Cb%3A2/v", "amqps://u@a:1,b:2/v"),
        ("amqps://u:p@a%2Cb:7/v", "amqps://u@a:7,b:7/v"),
        ("amqps://u:p@[::1]:7/v", "amqps://u@[::1]:7/v"),
        ("amqps://u:p@%3A%3A1:7/v", "amqps://u@[::1]:7/v"),
        ("rabbitmq://u:p@h/v", "amqps://u@h:5671/v"),
        ("rabbitmq://u:p@h:5672/v", "amqp://u@h:5672/v"),
        ("rabbitmq://u:p@h:1/v?tls=true", "amqps://u@h:1/v"),
        ("rabbitmq://u:p@h/v?__extra__=%7B%22tls%22%3A+false%7D", "amqp://u@h:5672/v"),
        ({"conn_type": "rabbitmq", "host": "h"}, "amqps://guest@h:5671/%2F"),
        (
            {
                "conn_type": "rabbitmq",
                "host": "a:1,[::1]:2",
                "login": "u",
                "password": "p",
                "schema": "v",
                "extra": {"tls": True},
            },
            "amqps://u@a:1,[::1]:2/v",
        ),
        ({"conn_type": "amqps", "host": "h", "extra": {"heartbeat": 5}}, "amqps://guest@h:5671/%2F"),
        # pasted credentials, as the form sends them with its other fields untouched
        (
            {
                "conn_type": "rabbitmq",
                "host": "",
                "extra": {"credentials_secret": f"amqps://u:{PASSWORD}@h/v", "tls": True, "ca_certificate": None},
            },
            "amqps://u@h:5671/v",
        ),
        ({"conn_type": "rabbitmq", "extra": {"credentials": {"uri": "amqps://u:p@h"}}}, "amqps://u@h:5671/%2F"),
    ],
)
def test_connections(value, expected, connection):
    assert described(value, connection) == expected


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("http://u:p@h", ("type is 'http'", "RabbitMQ")),
        ({"conn_type": "rabbitmq"}, ("names no host", "Host")),
        ({"conn_type": "rabbitmq", "host": "h", "extra": {"hosts": "i"}}, ("`hosts` is set in its own field and",)),
        ({"conn_type": "rabbitmq", "host": "h", "extra": {"hertbeat": 1}}, ("`hertbeat`", "`heartbeat`")),
        ({"conn_type": "rabbitmq", "host": "h", "extra": [1]}, ("extra must be a JSON object",)),
        ({"conn_type": "rabbitmq", "host": f"amqps://u:{PASSWORD}@h"}, ("whole URI",)),
        ({"conn_type": "amqp", "host": "h", "extra": {"tls": True}}, ("amqp",)),
        ({"conn_type": "amqps", "host": "h", "login": "u"}, ("without a password",)),
    ],
)
def test_wrong_connections(value, words, connection):
    hook = connection(value)
    for call in (hook.endpoint, lambda: asyncio.run(hook.aendpoint()), hook.get_conn):
        with pytest.raises(ConfigurationError) as caught:
            call()
        for word in (*words, "connection 'broker'"):
            assert word in str(caught.value)
        assert PASSWORD not in str(caught.value)


def test_a_connection_that_does_not_exist():
    hook = RabbitMQHook("no_such")
    for call in (hook.endpoint, lambda: asyncio.run(hook.aendpoint())):
        with pytest.raises(ConfigurationError) as caught:
            call()
        for word in (
            "'no_such'",
            "Admin > Connections",
            "AIRFLOW_CONN_NO_SUCH=amqps://",
            "python -m airflow_rabbitmq_spark.connection",
        ):
            assert word in str(caught.value)
    assert hook.test_connection()[0] is False
    assert "AIRFLOW_CONN_NO_SUCH" in hook.test_connection()[1]


def test_a_uri_that_airflow_cannot_read_is_not_called_missing(monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_UNREADABLE", f"amqps://u:{PASSWORD}@h?management_url=https://page:15671")
    for call in (RabbitMQHook("unreadable").endpoint, lambda: asyncio.run(RabbitMQHook("unreadable").aendpoint())):
        with pytest.raises(
            ConfigurationError, match="cannot read the environment variable AIRFLOW_CONN_UNREADABLE"
        ) as caught:
            call()
        assert "management_url=https%3A%2F%2F" in str(caught.value)
        assert PASSWORD not in str(caught.value)


def test_the_connection_name(connection, monkeypatch):
    assert connection("amqps://u:p@h").endpoint().connection_name == f"airflow-rabbitmq-spark {__version__}"
    assert connection("amqps://u:p@h").endpoint("mine").connection_name == "mine"
    assert connection("amqps://u:p@h?connection_name=set").endpoint().connection_name == "set"

    class Instance:
        dag_id, task_id, run_id = "d" * 200, "täsk", "run"

    monkeypatch.setattr("airflow.sdk.get_current_context", lambda: {"ti": Instance()})
    name = default_connection_name()
    assert name.startswith(f"airflow-rabbitmq-spark {__version__} dddd")
    assert len(name.encode()) <= 255
    Instance.dag_id = "dag"
    assert default_connection_name().endswith("dag.täsk run")


def test_secrets_are_masked_wherever_they_were_written(connection, monkeypatch):
    masked: list[object] = []
    monkeypatch.setattr("airflow.sdk.log.mask_secret", lambda value, _name=None: masked.append(value))
    connection({"conn_type": "rabbitmq", "extra": {"credentials": f"amqps://u:{PASSWORD}@h"}}).endpoint()
    assert [PASSWORD] in masked


def test_no_log_line_shows_a_secret(connection, caplog):
    caplog.set_level(logging.DEBUG)
    endpoint = connection(f"amqps://u:{PASSWORD}@h?verify=false").endpoint()
    endpoint.parameters()
    assert "verify=false" in caplog.text
    assert PASSWORD not in caplog.text


def test_hooks_of_the_uri_types():
    assert (AMQPHook.conn_type, AMQPSHook.conn_type, RabbitMQHook.conn_type) == ("amqp", "amqps", "rabbitmq")
    assert AMQPSHook("x").rabbitmq_conn_id == "x"
    assert RabbitMQHook().rabbitmq_conn_id == "rabbitmq_default"


def test_a_dag_file_that_imports_the_hook_does_not_pay_for_pika():
    code = (
        "import sys, airflow.sdk; before = set(sys.modules); import airflow_rabbitmq_spark.hooks.rabbitmq; "
        "print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert not loaded & {"pika", "pyspark", "ssl"}
