"""Tries a connection and says what it reached: for the form's Test button and for the terminal alike."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from airflow_rabbitmq_spark.amqp import probe
from airflow_rabbitmq_spark.amqp.background import Background
from airflow_rabbitmq_spark.amqp.connection import Connection
from airflow_rabbitmq_spark.exceptions import RabbitMQSparkError
from airflow_rabbitmq_spark.job.mailbox import Mailbox
from airflow_rabbitmq_spark.job.topology import Job

if TYPE_CHECKING:
    from airflow_rabbitmq_spark.amqp.endpoint import Endpoint

NAME = "airflow-rabbitmq-spark connection test"

#: Seconds one host may take: somebody looks at a form and waits.
TIMEOUT = 10.0

#: Characters that Airflow keeps of what a test says; from a worker it takes no more, and fails the test's report.
MOST = 2000

#: Days before a certificate's end from which on it is worth a warning.
EXPIRES_SOON = 30


def check(endpoint: Endpoint) -> str:
    """Connect to every host, log in, and declare and delete the queues of a job on the first that answers.

    :return: what was reached, for people: product, version, cluster, TLS, the certificate's end, permissions. Hosts
        that failed while another answered are named with the reason.
    :raises ConnectionFailed: no host let us in; of several reasons the first that waiting does not cure.
    :raises ConfigurationError: the certificates cannot be used.
    """
    reached: list[str] = []
    failures: list[tuple[tuple[str, int], RabbitMQSparkError]] = []
    working: Endpoint | None = None
    for host in endpoint.hosts:
        single = replace(
            endpoint, hosts=(host,), attempts=1, connection_timeout=min(TIMEOUT, endpoint.connection_timeout)
        )
        try:
            reached.append(_reach(single))
        except RabbitMQSparkError as error:
            failures.append((host, error))
        else:
            working = working or single
    if working is None:
        errors = [error for _, error in failures]
        raise next((error for error in errors if not error.transient), errors[0])
    lines = [*reached, _permissions(working)]
    lines += [f"But {host}:{port} did not let us in: {error}" for (host, port), error in failures]
    return shorten(" ".join(lines))


def shorten(text: str) -> str:
    """The text, cut to what Airflow takes."""
    return text if len(text) <= MOST else f"{text[: MOST - 4]} ..."


def _reach(endpoint: Endpoint) -> str:
    background = Background("rabbitmq-check")
    try:
        connection = background.call(Connection.open(endpoint, connection_name=NAME))
        try:
            properties = connection.server_properties
        finally:
            background.call(connection.close())
    finally:
        background.stop()
    product, version = _text(properties.get("product"), "AMQP broker"), _text(properties.get("version"), "?")
    cluster = _text(properties.get("cluster_name"), "")
    return (
        f"Reached {product} {version}{f' (cluster {cluster})' if cluster else ''} at {endpoint.describe()}, "
        f"{_encryption(endpoint)}."
    )


def _encryption(endpoint: Endpoint) -> str:
    if endpoint.tls is None:
        return "not encrypted"
    try:
        agreed = probe.handshake(endpoint, endpoint.hosts[0], endpoint.connection_timeout)
    except (OSError, ValueError):
        return "encrypted"  # the connection itself came about, so this is only less to tell
    text = f"{agreed.version} with {agreed.cipher}"
    if not endpoint.tls.verify:
        return f"{text}, certificate NOT VERIFIED"
    if agreed.expires is not None:
        days = (agreed.expires - datetime.now(timezone.utc)).days
        soon = f", IN {days} DAYS" if days < EXPIRES_SOON else ""
        text += f", certificate valid until {agreed.expires:%Y-%m-%d}{soon}"
    return text if endpoint.tls.check_hostname else f"{text}, host name NOT CHECKED"


def _permissions(endpoint: Endpoint) -> str:
    """Declare what a job needs and delete it again; the exchange stays, as the first job would leave it."""
    job = Job.new("connection", "test", endpoint.exchange)
    who = f"User {endpoint.username!r}" if endpoint.username else "The user of the client certificate"
    try:
        with Mailbox(endpoint, connection_name=NAME) as mailbox:
            try:
                mailbox.declare(job)
            finally:
                mailbox.delete(job)
    except RabbitMQSparkError as error:
        return f"But {who} cannot run jobs: {error}"
    return f"{who} may declare what jobs need in virtual host {endpoint.virtual_host!r}."


def _text(value: object, default: str) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value or default)
