"""The connection form: what Airflow's page builds of the provider info, held against the table of options."""

from __future__ import annotations

import importlib.resources
import json
import subprocess
import sys

import jsonschema
import pytest
from airflow.providers_manager import ProvidersManager
from airflow.sdk._shared.module_loading import import_string
from airflow.sdk.log import redact

from airflow_rabbitmq_spark.amqp.endpoint import Endpoint
from airflow_rabbitmq_spark.amqp.options import OPTIONS
from airflow_rabbitmq_spark.provider_info import get_provider_info

TYPES = {entry["connection-type"]: entry for entry in get_provider_info()["connection-types"]}
FIELDS = TYPES["rabbitmq"]["conn-fields"]

#: Options that Airflow's own fields carry, or that are another spelling of one in the form.
NOT_IN_THE_FORM = {"scheme", "hosts", "port", "virtual_host", "username", "password", "ca_certificate_base64"}


def test_it_is_what_airflow_wants():
    schema = json.loads(importlib.resources.files("airflow").joinpath("provider_info.schema.json").read_text())
    jsonschema.validate(get_provider_info(), schema)


def test_it_imports_nothing_but_its_package():
    code = (
        "import sys; before = set(sys.modules); from airflow_rabbitmq_spark import provider_info; "
        "provider_info.get_provider_info(); print(*sorted(set(sys.modules) - before))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {name.partition(".")[0] for name in loaded} <= {"airflow_rabbitmq_spark", "typing", "__future__"} | set(
        sys.stdlib_module_names
    )
    assert not {"ssl", "pika", "airflow"} & set(loaded)


def test_the_form_has_every_option_and_none_that_does_nothing():
    assert set(FIELDS) == set(OPTIONS) - NOT_IN_THE_FORM
    assert set(TYPES["amqps"]["conn-fields"]) == set(FIELDS) - {"tls"}
    of_tls = {name for name, option in OPTIONS.items() if option.group == "TLS"} | {"sasl_mechanism"}
    assert set(TYPES["amqp"]["conn-fields"]) == set(FIELDS) - of_tls


@pytest.mark.parametrize("name", FIELDS)
def test_fields(name):
    field, option = FIELDS[name], OPTIONS[name]
    schema = field["schema"]
    assert field["label"]
    assert field["description"].endswith(".")
    assert "null" in schema["type"]  # every field may stay empty
    if "default" in schema and name != "tls":  # the form says openly what is on by default
        assert schema["default"] == option.default
    for limit in ("minimum", "maximum"):
        if limit in schema:
            option.read(schema[limit])
            with pytest.raises(ValueError, match="out of range"):
                option.read(schema[limit] + (-1 if limit == "minimum" else 1))
    for word in schema.get("enum", ()):
        assert option.read(word) == word
    if isinstance(option.default, (int, float)) and not isinstance(option.default, bool):
        assert (
            f"{option.default:g}" in field["description"].replace("16777216", "1.67772e+07")
            or str(option.default) in field["description"]
        )


def test_what_the_form_sends_untouched_is_the_default_connection():
    untouched = {name: field["schema"].get("default") for name, field in FIELDS.items()}
    assert Endpoint.from_mapping({**untouched, "hosts": "h"}) == Endpoint.from_mapping({"hosts": "h"})
    plain = Endpoint.from_mapping({**untouched, "hosts": "h", "port": 5672, "tls": False})
    assert plain == Endpoint.from_mapping({"hosts": "h", "port": 5672})


@pytest.mark.parametrize("name", FIELDS)
def test_airflow_masks_the_secret_ones_by_their_names(name):
    shown = redact({name: "some secret value"})[name]
    assert (shown == "***") is OPTIONS[name].secret


def test_the_hooks_exist_and_say_the_same():
    for name, entry in TYPES.items():
        hook = import_string(entry["hook-class-name"])
        assert hook.conn_type == name
        assert hook.hook_name == entry["hook-name"]
        assert hook.conn_name_attr == "rabbitmq_conn_id"


def test_airflow_builds_the_form_of_it(monkeypatch):
    manager = ProvidersManager()
    assert "airflow-rabbitmq-spark" in manager.providers, "the package is not installed: make setup"
    widgets = manager._connection_form_widgets_from_metadata
    names = {key.removeprefix("extra__rabbitmq__") for key in widgets if key.startswith("extra__rabbitmq__")}
    assert names == set(FIELDS)
    behaviour = {meta.connection_type: meta.field_behaviour for meta in manager.iter_connection_type_hook_ui_metadata()}
    assert behaviour["rabbitmq"]["relabeling"]["schema"] == "Virtual host"
    assert "extra__" not in json.dumps(behaviour["rabbitmq"])
