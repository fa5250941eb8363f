"""``python -m airflow_rabbitmq_spark.connection``: what it prints is what Airflow reads."""

from __future__ import annotations

import io
import json
import shlex
import subprocess
import sys

import pytest
import trustme
from airflow.sdk import Connection

from airflow_rabbitmq_spark.amqp.endpoint import Endpoint
from airflow_rabbitmq_spark.connection import main
from airflow_rabbitmq_spark.hooks.rabbitmq import connection_options

PASSWORD = "canary '\"$ p@ss"
PEM = trustme.CA().cert_pem.bytes().decode()
DOCUMENTS = {
    "one host": {"host": "h", "port": "5671", "username": "u", "password": PASSWORD, "ca.crt": PEM, "vhost": "v/w"},
    "plain": {"uri": "amqp://u:p@h/v"},
    "several hosts": {"uri": "amqps://u:p@a:1,[::1]:2/v"},
    "empty virtual host": {"uri": "amqps://u:p@h?virtual_host="},
    "many options": {
        "uri": "amqps://u:p@h?heartbeat=5&queue_type=quorum&check_hostname=false&management_url=https%3A%2F%2Fm"
    },
}


@pytest.fixture(params=DOCUMENTS)
def document(request, tmp_path):
    file = tmp_path / "credentials.json"
    file.write_text(json.dumps(DOCUMENTS[request.param]))
    return file


def read_back(connection: Connection) -> Endpoint:
    return Endpoint.from_mapping(connection_options(connection, connection.extra_dejson, where="x"))


def expected(document) -> Endpoint:
    return Endpoint.from_credentials(str(document))


def test_uri(document, capsys):
    assert main([str(document)]) == 0
    printed = capsys.readouterr().out.strip()
    assert "\n" not in printed
    assert read_back(Connection.from_uri(printed, conn_id="x")) == expected(document)


def test_json(document, capsys):
    assert main([str(document), "--format", "json"]) == 0
    printed = capsys.readouterr().out
    assert read_back(Connection.from_json(printed, conn_id="x")) == expected(document)


def test_command(document, capsys):
    assert main([str(document), "--format", "command", "--conn-id", "my broker"]) == 0
    words = shlex.split(capsys.readouterr().out)
    assert words[:4] == ["airflow", "connections", "add", "my broker"]
    assert words[4] == "--conn-json"
    assert read_back(Connection.from_json(words[5], conn_id="x")) == expected(document)


def test_standard_input(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("amqps://u:p@h/v"))
    assert main(["-"]) == 0
    assert (
        read_back(Connection.from_uri(capsys.readouterr().out.strip(), conn_id="x")).describe() == "amqps://u@h:5671/v"
    )


def test_what_the_document_does_not_say(tmp_path, capsys):
    file = tmp_path / "broker.json"
    file.write_text(json.dumps({"BrokerInstances": [{"Endpoints": ["amqps://b.mq.on.aws:5671"]}]}))
    assert main([str(file), "--set", "username=u", "--set", f"password={PASSWORD}", "--set", "heartbeat=9"]) == 0
    made = read_back(Connection.from_uri(capsys.readouterr().out.strip(), conn_id="x"))
    assert (made.username, made.password, made.heartbeat) == ("u", PASSWORD, 9)
    assert main([str(file), "--set", "nonsense"]) == 1
    assert "NAME=VALUE" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ("empty",)),
        ("  \n", ("empty",)),
        ('{"password": "canary"}', ("no known shape", "keys: password", "Compose for RabbitMQ")),
        ('{"password": "canary"', ("neither the JSON",)),
        ("amqps://u:canary@h?hertbeat=1", ("`heartbeat`",)),
        ("/no/such/file", ("neither the JSON",)),
    ],
)
def test_bad_documents(content, words, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO(content))
    assert main(["-"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    for word in words:
        assert word in printed.err
    assert "canary" not in printed.err


def test_a_file_that_is_not_there(capsys):
    assert main(["/no/such/file.json"]) == 1
    assert "/no/such/file.json" in capsys.readouterr().err


def test_it_runs_as_a_program():
    command = [sys.executable, "-m", "airflow_rabbitmq_spark.connection", "-", "--format", "json"]
    done = subprocess.run(command, input="amqps://u:p@h", capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["conn_type"] == "rabbitmq"
    done = subprocess.run([*command[:3], "--help"], capture_output=True, text=True, check=True)
    assert "--test" in done.stdout
