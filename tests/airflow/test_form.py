"""The connection form and its test, in a real browser and on a real worker, against a real Airflow and TLS broker.

``SCREENSHOTS=docs/images`` keeps the pictures that ``docs/connection.md`` shows.
"""

from __future__ import annotations

import base64
import json
import time
import uuid

import pytest
import requests
import trustme

from tests.airflow.connection_form import connections_page


@pytest.fixture
def conn_id(airflow_stack):
    """The id of a connection that is deleted afterwards."""
    name = f"rabbitmq_{uuid.uuid4().hex[:6]}"
    yield name
    try:
        airflow_stack.api("DELETE", f"connections/{name}")
    except requests.HTTPError as error:
        assert error.response.status_code == 404, error  # noqa: PT017 - the test may have made none


def stored(airflow, conn_id):
    """The connection as Airflow keeps it, secrets and all."""
    exported = json.loads(airflow.run("connections", "export", "-", "--file-format", "json"))[conn_id]
    extra = exported["extra"]
    return {**exported, "extra": json.loads(extra) if isinstance(extra, str) else extra}


def compose_credentials(broker):
    """The credential document of Compose for RabbitMQ, for our broker."""
    ca = base64.b64encode(broker.ca_pem.encode()).decode()
    return json.dumps({"uri": broker.uri(), "ca_certificate_base64": ca, "uri_admin": "https://user:pw@127.0.0.1:1/"})


def test_fill_in_the_form_press_test_and_edit_without_losing_a_secret(airflow_stack, broker, conn_id):
    client = broker.authority.ca.issue_cert("driver@example.com")
    key, chain = client.private_key_pem.bytes().decode(), client.cert_chain_pems[0].bytes().decode()
    with connections_page(airflow_stack) as page:
        form = page.add(conn_id, "RabbitMQ")
        assert form.groups() == [
            "Standard Fields",
            "Cloud credentials",
            "TLS",
            "Client certificate",
            "Timing and limits",
            "Jobs",
            "Name and links",
            "Extra Fields JSON",
        ]
        form.fill(
            "Standard Fields",
            {"Host": broker.host, "Login": broker.user, "Password": broker.password, "Port": str(broker.port)},
        )
        assert form.field("Password").get_attribute("type") == "password"
        form.fill("Client certificate", {"Certificate": chain, "Private key": key})
        form.fill("Timing and limits", {"Heartbeat (seconds)": "20"})
        form.fill("TLS", {"CA certificate": broker.ca_pem})
        form.picture("connection-form")
        form.save()

        title, text = page.test(conn_id)
        page.picture("connection-test-ok")
        assert title == "Test Connection Successful", text
        assert text.startswith("Reached RabbitMQ")
        for word in ("TLSv1.", "certificate valid until", f"User {broker.user!r} may declare what jobs need"):
            assert word in text

        # An edit of something else: what Airflow shows in place of the secrets comes back as the secrets.
        page.reload()
        form = page.edit(conn_id)
        form.fill("Standard Fields", {"Description": "edited"})
        assert form.field("Password").input_value() == "***"
        form.open("Client certificate")
        assert form.field("Private key").input_value() == "***"
        assert form.field("Certificate").input_value().strip() == chain.strip()
        form.save()
        connection = stored(airflow_stack, conn_id)
        assert connection["description"] == "edited"
        assert connection["password"] == broker.password
        assert connection["extra"]["private_key"].strip() == key.strip()
        assert connection["extra"]["ca_certificate"].strip() == broker.ca_pem.strip()
        assert connection["extra"]["heartbeat"] == 20
        page.reload()
        assert page.test(conn_id)[0] == "Test Connection Successful"

        # The wrong authority: the page says why, and what to change.
        page.reload()
        form = page.edit(conn_id)
        form.fill("TLS", {"CA certificate": trustme.CA().cert_pem.bytes().decode()})
        form.save()
        title, text = page.test(conn_id)
        page.picture("connection-test-failing")
        assert title == "Test Connection Failed"
        assert (
            "the broker's certificate is refused: it does not come from an authority in option `ca_certificate`" in text
        )
        assert "Replace `ca_certificate`" in text
        assert broker.password not in text
        assert stored(airflow_stack, conn_id)["password"] == broker.password


def test_paste_the_credentials_of_a_cloud_into_the_form(airflow_stack, broker, conn_id):
    document = compose_credentials(broker)
    with connections_page(airflow_stack) as page:
        form = page.add(conn_id, "RabbitMQ")
        form.fill("Cloud credentials", {"Credentials (JSON)": document})
        form.save()
        # Airflow's page posts port 0 for an empty one, which Airflow takes for another address than the stored one, for
        # which it does not use stored secrets. The field's description says so.
        assert page.test(conn_id) == ("Test Connection Failed", "Bad Request")

        page.reload()
        form = page.edit(conn_id)
        form.fill("Standard Fields", {"Port": str(broker.port)})
        form.open("Cloud credentials")
        assert form.field("Credentials (JSON)").input_value() == "***"
        form.save()
        assert stored(airflow_stack, conn_id)["extra"]["credentials_secret"] == document
        title, text = page.test(conn_id)
        assert title == "Test Connection Successful", text
        assert text.startswith("Reached RabbitMQ")


def queued_test(airflow, **body):
    """Let a worker test a connection, as Airflow 3.3's REST API offers it: its state and what it says."""
    deadline = time.monotonic() + 120
    while True:
        token = airflow.api("POST", "connections/enqueue-test", json=body)["token"]
        while True:
            answer = airflow.api("GET", "connections/enqueue-test", headers={"Airflow-Connection-Test-Token": token})
            if answer["state"] in {"success", "failed"}:
                break
            assert time.monotonic() < deadline, answer
            time.sleep(0.2)
        # On a busy machine Airflow's worker gives up its request for the connection after 5 s, and may not ask twice.
        if not str(answer["result_message"]).endswith("ServerResponseError") or time.monotonic() > deadline:
            return answer["state"], answer["result_message"]


def test_the_test_that_is_queued_for_a_worker(airflow_stack, broker, conn_id):
    body = {
        "connection_id": conn_id,
        "conn_type": "rabbitmq",
        "host": broker.host,
        "port": broker.port,
        "login": broker.user,
        "password": broker.password,
    }
    good = json.dumps({"tls": True, "ca_certificate": broker.ca_pem})
    state, text = queued_test(airflow_stack, **body, extra=good, commit_on_success=True)
    assert state == "success", text
    assert text.startswith("Reached RabbitMQ")
    assert "may declare what jobs need" in text
    assert stored(airflow_stack, conn_id)["extra"]["ca_certificate"] == broker.ca_pem  # it went all the way and back

    wrong = json.dumps({"tls": True, "ca_certificate": trustme.CA().cert_pem.bytes().decode()})
    state, text = queued_test(airflow_stack, **body, extra=wrong)
    assert state == "failed"
    assert "it does not come from an authority in option `ca_certificate`" in text

    # A secret copied from what Airflow shows is called that.
    state, text = queued_test(airflow_stack, **body, extra=json.dumps({"credentials_secret": "***"}))
    assert state == "failed"
    assert "what Airflow shows in place of a secret" in text

    # Airflow takes no more than 2,000 characters of what a worker says, and fails the report of more.
    nobody_listens = ",".join(f"{broker.host}:{port}" for port in range(1, 13))
    many = {**body, "host": f"{broker.host},{nobody_listens}"}
    state, text = queued_test(airflow_stack, **many, extra=good)
    assert state == "success", text
    assert len(text) == 2000
