"""The addresses behind a task's links: right for any name, and never with a secret or a script in them."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from airflow_rabbitmq_spark.amqp.endpoint import Endpoint
from airflow_rabbitmq_spark.hooks.spark_standalone import SparkStandaloneHook
from airflow_rabbitmq_spark.job.topology import Job
from airflow_rabbitmq_spark.links.spark_job import LINKS, MASTER, QUEUE, UI, at_start, at_submission, web_address
from airflow_rabbitmq_spark.operators.spark_job import SparkJobOperator

JOB = Job("d", "t", "0123456789abcdef0123456789abcdef", "my spark/events")


@pytest.mark.parametrize(
    ("virtual_host", "address"),
    [
        ("/", "https://page:15671/#/queues/%2F/my%20spark%2Fevents.job.0123456789abcdef0123456789abcdef"),
        ("a/b c", "https://page:15671/#/queues/a%2Fb%20c/my%20spark%2Fevents.job.0123456789abcdef0123456789abcdef"),
    ],
)
def test_the_queue_at_the_broker(virtual_host, address):
    endpoint = Endpoint.from_mapping(
        {
            "hosts": "h",
            "username": "canary-user",
            "password": "canary-password",
            "virtual_host": virtual_host,
            "management_url": "https://page:15671/",
        }
    )
    links = at_submission(endpoint, JOB, "http://master:8080")
    assert links == {QUEUE.xcom_key: address, MASTER.xcom_key: "http://master:8080"}
    assert "canary" not in str(links)


def test_no_management_page_no_link():
    assert at_submission(Endpoint.from_mapping({"hosts": "h"}), JOB, "")[QUEUE.xcom_key] == ""


@pytest.mark.parametrize(
    ("host", "extra", "page"),
    [
        ("spark://master", {}, "http://master:8080"),
        ("spark://one:7077,two:7077", {}, "http://one:8080"),
        ("spark://[::1]:7077", {}, "http://[::1]:8080"),
        ("spark://master", {"web-url": "https://spark.example.com/ui/"}, "https://spark.example.com/ui"),
    ],
)
def test_the_master(monkeypatch, host, extra, page):
    connection = {"conn_type": "spark", "host": host, "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_SPARK_DEFAULT", json.dumps(connection))
    assert SparkStandaloneHook().web_url == page


def test_what_the_driver_says():
    data = {"ui": "http://driver:4040", "application_id": "app-1&x"}
    assert at_start(data, "http://m:8080") == {
        UI.xcom_key: "http://driver:4040",
        MASTER.xcom_key: "http://m:8080/app/?appId=app-1%26x",
    }
    assert at_start({"host": "h"}, "http://m:8080") == {}
    assert at_start({"ui": None, "application_id": "a"}, "") == {}


@pytest.mark.parametrize(
    "value",
    [
        "javascript:alert(1)",
        "data:text/html,x",
        "ftp://host",
        "http://user:secret@host",
        "//host",
        "http://",
        "x" * 3000,
        None,
        7,
        ["http://x"],
        "",
    ],
)
def test_nothing_else_becomes_a_link(value):
    assert web_address(value) == ""


def test_the_operator_has_them_and_tells_what_it_knows():
    assert SparkJobOperator.operator_extra_links == LINKS
    assert [link.name for link in LINKS] == ["RabbitMQ queue", "Spark UI", "Spark master"]
    assert len({link.xcom_key for link in LINKS}) == 3
    operator = SimpleNamespace(links={UI.xcom_key: "http://driver:4040"})
    assert UI.get_link(operator, ti_key=None) == "http://driver:4040"
