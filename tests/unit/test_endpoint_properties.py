"""Whatever the credentials hold, they come out of every form as they went in."""

from __future__ import annotations

import contextlib
import json
import logging

from airflow.sdk import Connection
from hypothesis import assume, given
from hypothesis import strategies as st

from airflow_rabbitmq_spark.amqp.endpoint import Endpoint
from airflow_rabbitmq_spark.amqp.options import OPTIONS
from airflow_rabbitmq_spark.connection import airflow_fields, airflow_uri
from airflow_rabbitmq_spark.exceptions import ConfigurationError
from airflow_rabbitmq_spark.hooks.rabbitmq import connection_options

anything = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
something = anything.filter(bool)
vhosts = anything.filter(lambda text: len(text.encode()) <= 255)
labels = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?(\.[a-z]{2,5})?", fullmatch=True)
hosts = st.one_of(labels, st.ip_addresses(v=4).map(str), st.ip_addresses(v=6).map(str))
ports = st.integers(1, 65535)
endpoints = st.builds(
    lambda where, **options: Endpoint.from_mapping({"hosts": [list(pair) for pair in where], **options}),
    st.lists(st.tuples(hosts, ports), min_size=1, max_size=3),
    username=something,
    password=anything,
    virtual_host=vhosts,
    tls=st.booleans(),
    heartbeat=st.integers(1, 65535),
    delay=st.floats(0, 3600),
    connection_name=something,
)


@given(endpoints)
def test_endpoint_to_uri_to_endpoint(endpoint):
    assert Endpoint.from_uri(endpoint.to_uri()) == endpoint


@given(endpoints)
def test_endpoint_to_mapping_to_json_to_endpoint(endpoint):
    assert Endpoint.from_mapping(json.loads(json.dumps(endpoint.to_mapping()))) == endpoint


def through_airflow(connection: Connection) -> Endpoint:
    return Endpoint.from_mapping(connection_options(connection, connection.extra_dejson, where="x"))


@given(endpoints)
def test_endpoint_to_airflow_uri_to_endpoint(endpoint):
    assume(endpoint.password)  # an empty field of Airflow's is one that is not filled in
    assert through_airflow(Connection.from_uri(airflow_uri(endpoint), conn_id="x")) == endpoint


@given(endpoints)
def test_endpoint_to_airflow_json_to_endpoint(endpoint):
    assume(endpoint.password)
    document = json.dumps(airflow_fields(endpoint))
    assert through_airflow(Connection.from_json(document, conn_id="x")) == endpoint


@given(st.tuples(something, something, vhosts.filter(bool), hosts, ports), st.booleans())
def test_form_to_endpoint(filled_in, tls):
    username, password, vhost, host, port = filled_in
    connection = Connection(
        conn_id="x",
        conn_type="rabbitmq",
        host=host,
        port=port,
        login=username,
        password=password,
        schema=vhost,
        extra=json.dumps({"tls": tls, "ca_certificate": None, "private_key": "", "verify": True}),
    )
    endpoint = through_airflow(connection)
    assert (endpoint.username, endpoint.password, endpoint.virtual_host) == (username, password, vhost)
    assert endpoint.hosts == ((host, port),)
    parameters = endpoint.parameters()[0]
    assert (parameters.credentials.username, parameters.credentials.password) == (username, password)


@given(
    st.dictionaries(
        st.sampled_from([*OPTIONS, "nonsense"]), st.one_of(anything, st.integers(), st.booleans(), st.none())
    )
)
def test_any_option_with_any_value_is_an_endpoint_or_a_configuration_error(mapping):
    with contextlib.suppress(ConfigurationError):
        Endpoint.from_mapping({"hosts": "h", **mapping})


@given(anything)
def test_any_text_is_a_uri_or_a_configuration_error(text):
    for uri in (text, f"amqps://{text}", f"amqp://u:p@{text}/v"):
        with contextlib.suppress(ConfigurationError):
            Endpoint.from_uri(uri)


@given(anything)
def test_a_canary_is_never_shown(noise):
    canary = f"canary{noise}canary"
    logging.getLogger("airflow_rabbitmq_spark").setLevel(logging.DEBUG)
    endpoint = Endpoint.from_mapping({"hosts": "h", "username": "u", "password": canary})
    assert canary not in repr(endpoint) + str(endpoint.key()) + endpoint.describe() + repr(endpoint.parameters())
    for options in (
        {"password": canary + "\0"},
        {"private_key": canary},
        {"credentials": canary},
        {"private_key_passphrase": canary},
    ):
        try:
            Endpoint.from_mapping({"hosts": "h", "username": "u", "password": "p", **options})
        except ConfigurationError as error:
            assert canary not in str(error)  # noqa: PT017 - not every option is refused
