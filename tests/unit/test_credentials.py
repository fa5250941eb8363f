"""Credential documents of cloud services, with made-up values, in every wrapping they come in."""

from __future__ import annotations

import base64
import json

import pytest
import trustme

from airflow_rabbitmq_spark.amqp.credentials import SHAPES, recognise
from airflow_rabbitmq_spark.amqp.endpoint import Endpoint
from airflow_rabbitmq_spark.exceptions import ConfigurationError

PEM = trustme.CA().cert_pem.bytes().decode()
CA = base64.b64encode(PEM.encode()).decode()
PASSWORD = "canary/p@ss%word"
ENCODED = "canary%2Fp%40ss%25word"

IBM = {
    "connection": {
        "amqps": {
            "authentication": {"method": "direct", "password": PASSWORD, "username": "ibm_cloud_0a"},
            "certificate": {"certificate_authority": "self_signed", "certificate_base64": CA, "name": "0a-1b"},
            "composed": [f"amqps://ibm_cloud_0a:{ENCODED}@0a.b1.databases.appdomain.cloud:31797"],
            "hosts": [{"hostname": "0a.b1.databases.appdomain.cloud", "port": 31797}],
            "path": "",
            "query_options": {},
            "scheme": "amqps",
            "type": "uri",
        },
        "cli": {"arguments": [["--username=ibm_cloud_0a"]], "bin": "rabbitmqadmin", "type": "cli"},
        "https": {
            "authentication": {"method": "direct", "password": PASSWORD, "username": "ibm_cloud_0a"},
            "composed": [f"https://ibm_cloud_0a:{ENCODED}@0a.b1.databases.appdomain.cloud:30679"],
            "hosts": [{"hostname": "0a.b1.databases.appdomain.cloud", "port": 30679}],
            "path": "",
            "scheme": "https",
            "type": "uri",
        },
    },
    "instance_administration_api": {"deployment_id": "crn:v1:x", "root": "https://api.example.com/v4/ibm"},
}
COMPOSE = {
    "db_type": "rabbitmq",
    "name": "bmix-1",
    "deployment_id": "5a1b",
    "ca_certificate_base64": CA,
    "uri": f"amqps://admin:{ENCODED}@portal194-1.bmix-1.composedb.com:22711/bmix-1",
    "uri_direct_1": f"amqps://admin:{ENCODED}@portal193-0.bmix-1.composedb.com:22711/bmix-1",
    "uri_admin": f"https://admin:{ENCODED}@portal194-1.bmix-1.composedb.com:22712",
    "uri_admin_1": f"https://admin:{ENCODED}@portal193-0.bmix-1.composedb.com:22712",
    "uri_cli": "rabbitmqadmin --host=x",
    "maps": [],
}
CLOUDAMQP = {
    "http_api_uri": f"https://abcd:{ENCODED}@hare.rmq.cloudamqp.com/api/",
    "uri": f"amqps://abcd:{ENCODED}@hare.rmq.cloudamqp.com/abcd",
}
AMAZON = {
    "BrokerArn": "arn:aws:mq:us-east-1:000000000000:broker:x",
    "BrokerInstances": [
        {
            "ConsoleURL": "https://b-1234.mq.us-east-1.on.aws",
            "Endpoints": ["amqps://b-1234.mq.us-east-1.on.aws:5671"],
        }
    ],
    "EngineType": "RABBITMQ",
    "Users": [{"Username": "x"}],
}
OPERATOR = {
    "default_user.conf": f"default_user = default_user_x\ndefault_pass = {PASSWORD}\n",
    "host": "hello-world.my-namespace.svc",
    "port": "5671",
    "username": "default_user_x",
    "password": PASSWORD,
    "provider": "rabbitmq",
    "type": "rabbitmq",
    "connection_string": f"amqps://default_user_x:{ENCODED}@hello-world.my-namespace.svc:5671/",
}
BINDING = {
    "type": "rabbitmq",
    "provider": "other",
    "host": "h",
    "port": "5671",
    "username": "u",
    "password": PASSWORD,
    "virtual-host": "v",
    "ca.crt": PEM,
}


def encoded(data: dict[str, str]) -> dict[str, str]:
    return {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}


#: name -> document, hosts, vhost, user, whether a CA comes with it, management address
KNOWN = {
    "IBM Cloud Databases for RabbitMQ": (
        IBM,
        (("0a.b1.databases.appdomain.cloud", 31797),),
        "/",
        "ibm_cloud_0a",
        True,
        "https://0a.b1.databases.appdomain.cloud:30679",
    ),
    "Compose for RabbitMQ": (
        COMPOSE,
        (("portal194-1.bmix-1.composedb.com", 22711), ("portal193-0.bmix-1.composedb.com", 22711)),
        "bmix-1",
        "admin",
        True,
        "https://portal194-1.bmix-1.composedb.com:22712",
    ),
    "CloudAMQP": (
        CLOUDAMQP,
        (("hare.rmq.cloudamqp.com", 5671),),
        "abcd",
        "abcd",
        False,
        "https://hare.rmq.cloudamqp.com",
    ),
    "CloudAMQP API": (
        {"id": 1, "plan": "lemur", "url": CLOUDAMQP["uri"], "apikey": "canary"},
        (("hare.rmq.cloudamqp.com", 5671),),
        "abcd",
        "abcd",
        False,
        None,
    ),
    "Heroku CloudAMQP variable": (
        {"CLOUDAMQP_URL": CLOUDAMQP["uri"]},
        (("hare.rmq.cloudamqp.com", 5671),),
        "abcd",
        "abcd",
        False,
        None,
    ),
    "RabbitMQ Cluster Operator secret or service binding": (
        OPERATOR,
        (("hello-world.my-namespace.svc", 5671),),
        "/",
        "default_user_x",
        False,
        None,
    ),
    "service binding with CA": (BINDING, (("h", 5671),), "v", "u", True, None),
    "connection string": (
        {"connection_string": OPERATOR["connection_string"]},
        (("hello-world.my-namespace.svc", 5671),),
        "/",
        "default_user_x",
        False,
        None,
    ),
}


def wrappings(document: dict[str, object]) -> dict[str, object]:
    return {
        "as it is": document,
        "JSON": json.dumps(document),
        "JSON, indented": json.dumps(document, indent=2),
        "service key": {"name": "key", "guid": "1", "credentials": document},
        "service key list": [{"name": "key", "credentials": document}],
        "VCAP_SERVICES": {"some-rabbitmq": [{"label": "x", "credentials": document, "name": "n"}]},
    }


@pytest.mark.parametrize("name", KNOWN)
def test_shapes(name, tmp_path):
    document, hosts, vhost, user, with_ca, management = KNOWN[name]
    file = tmp_path / "credentials.json"
    file.write_text(json.dumps(document))
    for wrapping in (*wrappings(document).values(), str(file)):
        endpoint = Endpoint.from_credentials(wrapping)
        assert endpoint.hosts == hosts
        assert endpoint.virtual_host == vhost
        assert (endpoint.username, endpoint.password) == (user, PASSWORD)
        assert endpoint.tls is not None
        assert (endpoint.tls.ca is not None) is with_ca
        assert endpoint.management_url == management


def test_amazon_mq_takes_user_and_password_beside_it():
    endpoint = Endpoint.from_credentials(AMAZON, username="u", password=PASSWORD)
    assert endpoint.describe() == "amqps://u@b-1234.mq.us-east-1.on.aws:5671/%2F"
    assert endpoint.management_url == "https://b-1234.mq.us-east-1.on.aws"


@pytest.mark.parametrize("kind", ["data", "stringData"])
def test_kubernetes_secret(kind):
    data = encoded(OPERATOR) if kind == "data" else OPERATOR
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "x-default-user"}, kind: data}
    assert Endpoint.from_credentials(json.dumps(secret)).password == PASSWORD
    assert Endpoint.from_credentials({"kind": "List", "items": [secret]}).password == PASSWORD


def test_service_binding_directory(tmp_path):
    for name, content in BINDING.items():
        (tmp_path / name).write_text(f"{content}\n")
    (tmp_path / "..data").mkdir()
    endpoint = Endpoint.from_credentials(str(tmp_path))
    assert endpoint.describe() == "amqps://u@h:5671/v"
    assert endpoint.password == PASSWORD
    assert endpoint.tls.ca is not None


def test_default_user_conf(tmp_path):
    text = OPERATOR["default_user.conf"]
    (tmp_path / "default_user.conf").write_text(text)
    for document in (text, {"default_user.conf": text}, str(tmp_path), str(tmp_path / "default_user.conf")):
        endpoint = Endpoint.from_credentials(document, hosts="h")
        assert (endpoint.username, endpoint.password) == ("default_user_x", PASSWORD)


def test_a_uri_alone():
    assert (
        Endpoint.from_credentials(f" {CLOUDAMQP['uri']}\n").describe()
        == "amqps://abcd@hare.rmq.cloudamqp.com:5671/abcd"
    )


def test_every_shape_is_tested_here():
    tested = {*KNOWN, "Amazon MQ", "default_user.conf"}
    for shape in SHAPES:
        assert any(name in shape.name for name in tested), shape.name


def test_further_options_are_added():
    endpoint = Endpoint.from_credentials(IBM, heartbeat=30, queue_type="quorum")
    assert (endpoint.heartbeat, endpoint.queue_type) == (30, "quorum")
    assert Endpoint.from_credentials(IBM, verify=False).tls.ca is None
    other = trustme.CA().cert_pem.bytes().decode()
    assert Endpoint.from_credentials(IBM, ca_certificate=other).tls.ca != Endpoint.from_credentials(IBM).tls.ca
    assert Endpoint.from_credentials(IBM, username="ibm_cloud_0a") == Endpoint.from_credentials(IBM)


@pytest.mark.parametrize(
    ("option", "value"),
    [("hosts", "elsewhere"), ("username", "x"), ("virtual_host", "x"), ("password", "x"), ("scheme", "amqp")],
)
def test_what_is_set_beside_it_must_not_contradict(option, value):
    with pytest.raises(ConfigurationError, match=f"`{option}` is set and the credentials say otherwise") as caught:
        Endpoint.from_credentials(IBM, **{option: value})
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    "document",
    [
        {},
        [],
        {"a": {"password": PASSWORD}},
        {"uri": ""},
        {"uri": 7},
        {"connection": {"amqps": {"hosts": []}}},
        {"credentials": {"credentials": {"credentials": {"credentials": {"credentials": IBM}}}}},
        json.dumps({"password": PASSWORD}),
        f'{{"password": "{PASSWORD}"',
        f"{PASSWORD}\n{PASSWORD}",
        PASSWORD,
        "/no/such/file",
        "",
        "\0",
        "[" * 100_000,
        7,
    ],
)
def test_unknown_documents(document):
    with pytest.raises(ConfigurationError) as caught:
        Endpoint.from_credentials(document)
    assert PASSWORD not in str(caught.value)
    assert len(str(caught.value)) < 1500


def test_the_error_names_the_known_shapes():
    with pytest.raises(ConfigurationError) as caught:
        recognise({"foo": 1}, where="here")
    for shape in SHAPES:
        assert shape.name in str(caught.value)
    assert "foo" in str(caught.value)
    assert str(caught.value).startswith("here")


def test_a_file_that_cannot_be_read(tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\0")
    (tmp_path / "other").write_text("hello")
    for name in ("binary", "other"):
        with pytest.raises(ConfigurationError):
            Endpoint.from_credentials(str(tmp_path / name))
