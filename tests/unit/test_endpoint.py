"""Options, URIs and mappings: what is taken, what is refused and with which words."""

from __future__ import annotations

import copy
import dataclasses
import logging
import pickle

import pytest

from airflow_rabbitmq_spark.amqp.endpoint import TLS, Endpoint
from airflow_rabbitmq_spark.amqp.options import OPTIONS
from airflow_rabbitmq_spark.exceptions import ConfigurationError

SECRET = "canary-9f3c"


def refused(mapping: dict[str, object], *words: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Endpoint.from_mapping(mapping, where="connection 'x'")
    for word in words:
        assert word in str(caught.value)
    assert str(caught.value).startswith("connection 'x'")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "hosts", "vhost", "tls"),
    [
        ("amqp://h", (("h", 5672),), "/", False),
        ("amqps://h", (("h", 5671),), "/", True),
        ("AMQPS://h", (("h", 5671),), "/", True),
        ("amqp://h:5671", (("h", 5671),), "/", False),  # the scheme says it
        ("amqps://h:5672", (("h", 5672),), "/", True),
        ("amqps://", (("localhost", 5671),), "/", True),
        ("amqps://guest:guest@", (("localhost", 5671),), "/", True),
        # As AMQP has it: nothing is the default, a slash is the empty name.
        ("amqp://h/", (("h", 5672),), "", False),
        ("amqp://h/%2F", (("h", 5672),), "/", False),
        ("amqp://h/%2f", (("h", 5672),), "/", False),
        ("amqp://h//", (("h", 5672),), "/", False),
        ("amqp://h/a%2Fb", (("h", 5672),), "a/b", False),
        ("amqp://h/a/b", (("h", 5672),), "a/b", False),
        ("amqp://h/a%20b%C3%A9", (("h", 5672),), "a bé", False),
        ("amqp://h:1/v?heartbeat=7", (("h", 1),), "v", False),
        # Several hosts, IPv6.
        ("amqps://a:1,b:2,c/v", (("a", 1), ("b", 2), ("c", 5671)), "v", True),
        ("amqps://[::1]/v", (("::1", 5671),), "v", True),
        ("amqps://[2001:db8::1]:7,h:8", (("2001:db8::1", 7), ("h", 8)), "/", True),
        ("amqps://a,a,b", (("a", 5671), ("b", 5671)), "/", True),
    ],
)
def test_uri(uri, hosts, vhost, tls):
    endpoint = Endpoint.from_uri(uri)
    assert endpoint.hosts == hosts
    assert endpoint.virtual_host == vhost
    assert (endpoint.tls is not None) is tls
    assert (endpoint.username, endpoint.password) == ("guest", "guest")
    assert Endpoint.from_uri(endpoint.to_uri()) == endpoint


@pytest.mark.parametrize(
    "uri", ["http://h", "h:5671", "", "amqp:h", "amqps://u:%ff@h", "amqps://h?heartbeat=1&heartbeat=2"]
)
def test_uri_refused(uri):
    with pytest.raises(ConfigurationError):
        Endpoint.from_uri(uri)


def test_errors_about_a_uri_do_not_quote_it():
    for uri in (
        f"http://u:{SECRET}@h",
        f"amqps://u:{SECRET}%ff@h",
        f"amqps://u:12/{SECRET}@h",
        f"amqps://u:{SECRET}/12@h",
        f"amqps://u:{SECRET}@h:x",
        f"amqps://u:{SECRET}@h?x=1",
        f"amqps://u:a/b:{SECRET}@h",
        f"amqps://u@{SECRET}@h,u:{SECRET}@i",
    ):
        with pytest.raises(ConfigurationError) as caught:
            Endpoint.from_uri(uri)
        assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("mapping", "tls", "port"),
    [
        ({"hosts": "h"}, True, 5671),  # without any hint the safe one
        ({"hosts": "h", "port": 5671}, True, 5671),
        ({"hosts": "h", "port": "5671"}, True, 5671),
        ({"hosts": "h:5671"}, True, 5671),
        ({"hosts": "h", "port": 5672}, False, 5672),
        ({"hosts": "h", "port": 30671}, False, 30671),
        ({"hosts": "h", "port": 30671, "tls": True}, True, 30671),
        ({"hosts": "h", "tls": "false"}, False, 5672),
        ({"hosts": "h", "tls": "true"}, True, 5671),
        ({"hosts": "h", "scheme": "amqp"}, False, 5672),
        ({"hosts": ["a:1", "b:2"], "tls": False}, False, 1),
        ({"hosts": [["::1", 7]], "tls": False}, False, 7),
        # A form sends its defaults along, also for plain AMQP.
        (
            {"hosts": "h", "tls": False, "verify": True, "check_hostname": True, "minimum_tls_version": "TLSv1.2"},
            False,
            5672,
        ),
    ],
)
def test_tls_and_port_by_default(mapping, tls, port):
    endpoint = Endpoint.from_mapping(mapping)
    assert (endpoint.tls is not None) is tls
    assert endpoint.hosts[0][1] == port


@pytest.mark.parametrize("word", ["true", "True", "YES", "on", "1", 1, True, " true "])
def test_true(word):
    assert Endpoint.from_mapping({"hosts": "h", "port": 1, "tls": word}).tls is not None


@pytest.mark.parametrize("word", ["false", "False", "NO", "off", "0", 0, False])
def test_false(word):
    assert Endpoint.from_mapping({"hosts": "h", "port": 5671, "tls": word}).tls is None


@pytest.mark.parametrize("word", ["maybe", "tru", 2, 1.0, "none", [True], {"a": 1}, "y"])
def test_unclear_booleans_are_errors(word):
    refused({"hosts": "h", "tls": word}, "`tls`", "true or false")


@pytest.mark.parametrize("option", ["heartbeat", "connection_timeout", "blocked_connection_timeout", "attempts"])
@pytest.mark.parametrize("value", [-1, "-1", 0, float("inf"), "inf", "nan", "soon", True, 1e400, [1]])
def test_times_are_finite_and_positive(option, value):
    refused({"hosts": "h", option: value}, f"`{option}`", "number from")


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("heartbeat", 1.5, "whole"),
        ("heartbeat", 70000, "65535"),
        ("delay", -0.1, "from 0"),
        ("attempts", 101, "100"),
        ("frame_max", 100, "4096"),
        ("frame_max", 2**20, "131072"),
        ("max_message_bytes", 0, "from 1"),
        ("retention", 10, "from 60"),
        ("retention", 50 * 24 * 3600, "4233600"),
        ("port", 0, "65535"),
        ("port", 65536, "65535"),
        ("hosts", "h:x", "1 to 65535"),
        ("hosts", "h:99999", "1 to 65535"),
        ("hosts", "a b", "no host"),
        ("hosts", "a,,b", "no host"),
        ("hosts", "[::1", "[address]:port"),
        ("hosts", "[::1]x", "[address]:port"),
        ("hosts", "h/v", "no host"),
        ("hosts", f"u:{SECRET}@h", "user or password"),
        ("hosts", f"amqps://u:{SECRET}@h", "whole URI"),
        ("hosts", "amqps://h", "whole URI"),
        ("hosts", 7, "text"),
        ("hosts", [7], "text"),
        ("virtual_host", "x" * 256, "255 bytes"),
        ("virtual_host", "é" * 128, "255 bytes"),
        ("virtual_host", 5, "text"),
        ("exchange", "amq.topic", "amq."),
        ("exchange", "x" * 256, "255"),
        ("queue_type", "stream", "classic or quorum"),
        ("sasl_mechanism", "LOGIN", "PLAIN or EXTERNAL"),
        ("minimum_tls_version", "1.1", "TLSv1.2 or TLSv1.3"),
        ("minimum_tls_version", "SSLv3", "TLSv1.2"),
        ("management_url", "rabbit:15672", "web address"),
        ("management_url", f"https://u:{SECRET}@h", "links would show"),
        ("management_url", "https://[", "web address"),
        ("management_url", "https://***.example.com", "same text as a secret"),
        ("credentials_secret", "***", "in place of a secret"),
        ("private_key", "***", "in place of a secret"),
        ("scheme", "https", "amqp or amqps"),
        ("username", "a\0b", "NUL"),
        ("password", f"{SECRET}\0", "NUL"),
        ("password", f"{SECRET}\ud800", "Unicode"),
        ("password", 12345, "text"),
    ],
)
def test_values_refused(option, value, words):
    refused({"hosts": "h", option: value}, f"`{option}`", words)


@pytest.mark.parametrize(
    ("unknown", "meant"),
    [
        ("hertbeat", "heartbeat"),
        ("heart-beat", "heartbeat"),
        ("ca_cert", "ca_certificate"),
        ("cacertfile", "ca_certificate"),
        ("keyfile", "private_key"),
        ("ssl", "tls"),
        ("vhost", "virtual_host"),
        ("socket_timeout", "connection_timeout"),
        ("Verify", "verify"),
        ("queue-type", "queue_type"),
        ("auth_mechanism", "sasl_mechanism"),
    ],
)
def test_an_unknown_option_names_the_nearest(unknown, meant):
    refused({"hosts": "h", unknown: "x"}, f"`{unknown}`", f"`{meant}`")


def test_an_option_like_nothing_lists_them_all():
    refused({"hosts": "h", "zzzzqqq": SECRET}, *list(OPTIONS))


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        ({"scheme": "amqps", "tls": False}, ("amqps", "`tls` is false")),
        ({"scheme": "amqp", "tls": True}, ("amqp", "`tls` is true")),
        ({"scheme": "amqp", "ca_certificate": "x"}, ("`ca_certificate`", "plain AMQP", "amqps://")),
        ({"tls": False, "server_name": "x"}, ("`server_name`", "plain AMQP")),
        ({"tls": False, "verify": False}, ("`verify`", "plain AMQP")),
        ({"hosts": "a:5671,b:5672"}, ("5671", "`tls`")),
        ({"hosts": "a:5671", "port": 5672}, ("port is 5672", "remove one")),
        ({"hosts": ""}, ("no host",)),
        ({"hosts": []}, ("no host",)),
        ({"username": "u"}, ("without a password",)),
        ({"password": SECRET}, ("without a user",)),
        ({"username": "", "password": SECRET}, ("without a user",)),
        ({"sasl_mechanism": "EXTERNAL"}, ("EXTERNAL", "`client_certificate`")),
        ({"credentials": "{}", "credentials_secret": "{}"}, ("set twice",)),
    ],
)
def test_contradictions(mapping, words):
    refused({"hosts": "h", **mapping}, *words)


def test_what_is_empty_is_not_set():
    empty = {name: "" for name, option in OPTIONS.items() if not option.empty} | {"username": None, "password": None}
    assert Endpoint.from_mapping({**empty, "hosts": "h"}) == Endpoint.from_mapping({"hosts": "h"})
    assert Endpoint.from_mapping({**dict.fromkeys(OPTIONS), "hosts": "h"}) == Endpoint.from_mapping({"hosts": "h"})


FULL = {
    "hosts": ["a:1", "[::1]:2"],
    "virtual_host": "v/h",
    "tls": True,
    "username": "u:/@é",
    "password": SECRET,
    "heartbeat": 7,
    "connection_timeout": 1.5,
    "blocked_connection_timeout": 2.5,
    "attempts": 4,
    "delay": 0.5,
    "frame_max": 8192,
    "max_message_bytes": 100,
    "exchange": "jobs",
    "queue_type": "quorum",
    "retention": 3600,
    "management_url": "https://h:15671",
    "connection_name": "me",
    "server_name": "s",
    "check_hostname": False,
    "minimum_tls_version": "TLSv1.3",
}


def test_every_option_survives_mapping_uri_pickle_and_copy():
    endpoint = Endpoint.from_mapping(FULL)
    assert endpoint.to_mapping() == FULL
    assert Endpoint.from_mapping(endpoint.to_mapping()) == endpoint
    assert Endpoint.from_uri(endpoint.to_uri()) == endpoint
    assert pickle.loads(pickle.dumps(endpoint)) == copy.deepcopy(endpoint) == endpoint
    assert {option for option in OPTIONS if option not in FULL} == {
        "scheme",
        "port",
        "sasl_mechanism",
        "credentials_secret",
        "ca_certificate",
        "ca_certificate_base64",
        "client_certificate",
        "private_key",
        "private_key_passphrase",
        "verify",
    }


def test_the_defaults_of_the_table_are_those_of_the_class():
    bare = Endpoint.from_mapping({"hosts": "h"})
    for field in dataclasses.fields(Endpoint):
        if field.name in OPTIONS and OPTIONS[field.name].default is not None:
            assert getattr(bare, field.name) == OPTIONS[field.name].default == field.default, field.name


def test_parameters_are_pikas_one_for_each_host():
    endpoint = Endpoint.from_mapping({**FULL, "check_hostname": True, "minimum_tls_version": None})
    first, second = endpoint.parameters()
    assert (first.host, first.port, second.host, second.port) == ("a", 1, "::1", 2)
    for parameters in (first, second):
        assert parameters.virtual_host == "v/h"
        assert (parameters.credentials.username, parameters.credentials.password) == ("u:/@é", SECRET)
        assert parameters.heartbeat == 7
        assert parameters.socket_timeout == parameters.stack_timeout == 1.5
        assert parameters.blocked_connection_timeout == 2.5
        assert parameters.frame_max == 8192
        assert parameters.connection_attempts == 1
        assert parameters.client_properties == {"connection_name": "me"}
        assert parameters.ssl_options.server_hostname == "s"
    assert endpoint.parameters(connection_name="other")[0].client_properties == {"connection_name": "other"}
    plain = Endpoint.from_uri("amqp://h").parameters()[0]
    assert plain.ssl_options is None
    assert plain.client_properties is None


def test_pauses_are_finite_and_differ_by_chance():
    endpoint = Endpoint.from_uri("amqp://h", attempts=6, delay=2)
    pauses = list(endpoint.pauses())
    assert len(pauses) == 5
    assert all(1 <= pause <= 3 for pause in pauses)
    assert len(set(pauses)) > 1
    assert list(Endpoint.from_uri("amqp://h", attempts=1).pauses()) == []


def test_key_is_shared_by_equals_and_says_nothing():
    endpoint = Endpoint.from_mapping(FULL)
    assert endpoint.key() == Endpoint.from_mapping(FULL).key()
    assert endpoint.key() == dataclasses.replace(endpoint, connection_name="other task").key()
    for name, value in (
        ("password", "p"),
        ("username", "x"),
        ("virtual_host", "w"),
        ("hosts", (("b", 1),)),
        ("tls", TLS()),
    ):
        assert dataclasses.replace(endpoint, **{name: value}).key() != endpoint.key()
    assert SECRET not in str(endpoint.key())


def test_nothing_shows_a_secret(caplog):
    caplog.set_level(logging.DEBUG)
    endpoint = Endpoint.from_mapping({**FULL, "verify": False, "check_hostname": None})
    endpoint.parameters()
    assert SECRET not in repr(endpoint) + str(endpoint) + endpoint.describe() + repr(endpoint.tls) + caplog.text
    assert endpoint.describe() == "amqps://u%3A%2F%40%C3%A9@a:1,[::1]:2/v%2Fh"
    assert endpoint.describe(("::1", 2)) == "amqps://u%3A%2F%40%C3%A9@[::1]:2/v%2Fh"
    assert f"{dataclasses.replace(endpoint, tls=TLS(private_key=SECRET, passphrase=SECRET))!r}".count(SECRET) == 0
    assert SECRET not in repr(TLS(private_key=SECRET, passphrase=SECRET))


def test_both_checks_switched_off_are_warned_about(caplog):
    Endpoint.from_uri("amqps://h", verify="false").ssl_context()
    assert "verify=false" in caplog.text
    assert "amqps://guest@h:5671" in caplog.text
    caplog.clear()
    Endpoint.from_uri("amqps://h", check_hostname="false").ssl_context()
    assert "check_hostname=false" in caplog.text
    caplog.clear()
    Endpoint.from_uri("amqps://h").ssl_context()
    assert not caplog.text


def test_options_beside_a_uri():
    assert Endpoint.from_uri("amqp://h", heartbeat=3).heartbeat == 3
    with pytest.raises(ConfigurationError, match="`heartbeat` is set twice"):
        Endpoint.from_uri("amqp://h?heartbeat=3", heartbeat=3)
