"""The documentation says what is so, and its examples run. Those that need something running are in the other tiers."""

from __future__ import annotations

import configparser
import importlib.util
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
import textwrap
from datetime import datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import jsonschema
import pika
import pytest
from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator

from airflow_rabbitmq_spark import exceptions
from airflow_rabbitmq_spark.amqp.connection import Message
from airflow_rabbitmq_spark.amqp.options import OPTIONS
from airflow_rabbitmq_spark.hooks.spark_standalone import SparkStandaloneHook
from airflow_rabbitmq_spark.job import bundle, events, handover, link, session, topology
from airflow_rabbitmq_spark.links.spark_job import LINKS
from airflow_rabbitmq_spark.listeners.listener import task_notice, to_message
from airflow_rabbitmq_spark.notifications.rabbitmq import RabbitMQNotifier
from airflow_rabbitmq_spark.operators.rabbitmq import RabbitMQPublishOperator
from airflow_rabbitmq_spark.operators.spark_job import SparkJobOperator
from airflow_rabbitmq_spark.provider_info import get_provider_info
from airflow_rabbitmq_spark.sensors.rabbitmq import RabbitMQSensor
from airflow_rabbitmq_spark.triggers.message import payload
from tests.markdown import PAGES, ROOT, Example, example, examples

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SCHEMA = json.loads((ROOT / "docs" / "event.schema.json").read_text())

#: Every kind of example, and the tier that runs it.
KINDS = {
    "python dag": "unit",
    "python task": "unit",
    "python application": "unit",
    "python unmodified": "unit",
    "python spark": "spark",
    "python subscriber": "broker",
    "python browser": "broker",
    "python": "broker",
    "json event": "unit",
    "json listener": "unit",
    "json message": "unit",
    "json xcom": "airflow",
    "ini": "unit",
    "sh": "unit",
    "text": "for people",
    "text application": "unit",
    "mermaid": "unit",
}


def page(name: str) -> str:
    return next(path for path in PAGES if path.name == name).read_text()


def section(name: str, title: str) -> str:
    found = page(name).partition(f"\n## {title}\n")
    assert found[1], f"{name} has no section {title!r}"
    return found[2].partition("\n## ")[0]


def rows(text: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip().strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("| ")
    ]


def named(text: str) -> set[str]:
    return set(re.findall(r"`(\w+)`", text))


# Pages -----------------------------------------------------------------------------------------------------------------


def test_every_example_is_of_a_kind_that_a_test_runs():
    unknown = [str(one) for one in examples() if f"{one.language} {one.kind}".strip() not in KINDS]
    assert not unknown, f"These say no kind that tests/unit/test_docs.py knows: {unknown}"
    assert not [path for path in PAGES if path.read_text().count("\n```") % 2]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_between_pages_lead_somewhere(path: Path):
    prose = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        found = (path.parent / file).resolve() if file else path
        assert found.exists(), f"{path.name} links to {target}"
        if anchor:
            titles = re.findall(r"^#+ (.*)$", found.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}
            assert anchor in anchors, f"{path.name} links to {target}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_files_and_commands_that_are_named_are_there(path: Path):
    text = path.read_text()
    for file in re.findall(r"\b(?:tests|benchmarks|stack|docs|dags|docker|airflow_rabbitmq_spark)/[\w/.-]*\w", text):
        assert (ROOT / file).exists() or (ROOT / f"{file}.py").exists(), f"{path.name} names {file}"
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z0-9-]+)", text)) <= targets, path.name


@pytest.mark.parametrize("one", examples("sh"), ids=str)
def test_shell_commands_exist(one: Example):
    subprocess.run(["sh", "-n"], input=one.text, text=True, check=True)
    targets = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for line in one.text.replace("\\\n", " ").splitlines():
        words = [word for word in shlex.split(line, comments=True) if not re.fullmatch(r"[A-Z_]+=.*", word)]
        if words[:1] == ["make"]:
            assert set(words[1:]) <= set(targets), line
        elif words[1:2] == ["-m"]:
            assert importlib.util.find_spec(words[2]), line
        elif words:
            assert words[0] in {"airflow", "cd", "docker", "export", "git", "pip", "python", "spark-submit"}, line


@pytest.mark.parametrize("one", examples("mermaid"), ids=str)
def test_diagrams_have_the_grammar_that_they_use(one: Example):
    """Mermaid itself is not here to ask. A ``;`` would end a statement, and ``#`` begin an entity."""
    first, *lines = [line.strip() for line in one.text.splitlines()]
    assert first == "sequenceDiagram"
    known = [match[1] for line in lines if (match := re.fullmatch(r"participant (\w+) as [^;#]+", line))]
    who = "|".join(known)
    step = rf"(?:{who})(?:->>|-->>)(?:{who}): [^;#]+|Note over (?:{who}): [^;#]+|(?:alt|else) [^;#]+|end"
    assert [line for line in lines[len(known) :] if not re.fullmatch(step, line)] == []
    assert lines.count("end") == sum(line.startswith("alt ") for line in lines)


# DAGs ------------------------------------------------------------------------------------------------------------------

DAGS = examples("python dag", "python task")
PARSE = """
import json, sys
from airflow.dag_processing.dagbag import DagBag

bag = DagBag(sys.argv[1])
tasks = {dag_id: len(dag.tasks) for dag_id, dag in bag.dags.items()}
print()
print(json.dumps([bag.import_errors, tasks]))
"""


def test_every_dag_parses(tmp_path: Path):
    """In a process and an Airflow home of its own."""
    folder = tmp_path / "dags"
    folder.mkdir()
    for number, one in enumerate(DAGS):
        text = one.text
        if one.kind == "task":
            body = textwrap.indent(text, "    ")
            text = f"from airflow.sdk import DAG\n\nwith DAG('example_{number}', schedule=None):\n{body}"
        (folder / f"{one.page.stem}_{one.line}.py").write_text(text)
    done = subprocess.run(
        [sys.executable, "-c", PARSE, str(folder)],
        env={**os.environ, "AIRFLOW_HOME": str(tmp_path), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    errors, tasks = json.loads(done.stdout.splitlines()[-1])
    assert errors == {}
    assert len(tasks) == len(DAGS)
    assert all(tasks.values())


def arguments(kind: type) -> dict[str, inspect.Parameter]:
    """What a class's own ``__init__`` names."""
    parameters = inspect.signature(kind.__init__).parameters
    return {
        name: one
        for name, one in parameters.items()
        if one.kind is inspect.Parameter.KEYWORD_ONLY and name != "context"
    }


def test_every_argument_of_the_operator_is_described():
    text = section("dags.md", "Arguments")
    own, inherited = text.split("And all of Airflow's", maxsplit=1)
    described = {name: row for row in rows(own)[1:] for name in re.findall(r"^`(\w+)`", row[0])}
    parameters = arguments(SparkJobOperator)
    assert set(described) == set(parameters) - {"name"}
    for name, row in described.items():
        default = parameters[name].default
        if isinstance(default, (bool, str)):
            assert row[1] == f"`{default}`", name
        elif default is not None:
            assert row[1].removesuffix(" s") == f"{default:.10g}", name
        assert ("(templated)" in row[2]) == (name in SparkJobOperator.template_fields), name
    theirs = {name for row in rows(inherited)[1:] for name in named(row[0])} | {"reconnect_on_retry"}
    assert theirs == set(arguments(SparkSubmitOperator))


@pytest.mark.parametrize(
    ("kind", "title"),
    [
        (RabbitMQPublishOperator, "Publish messages"),
        (RabbitMQSensor, "Wait for a message"),
        (RabbitMQNotifier, "Tell of success and failure"),
    ],
)
def test_every_argument_is_described(kind: Any, title: str):
    described = {name: row for row in rows(section("dags.md", title)) for name in re.findall(r"^`(\w+)`", row[0])}
    parameters = arguments(kind)
    assert set(described) == set(parameters)
    for name, row in described.items():
        default = parameters[name].default
        if isinstance(default, (bool, str)):
            assert row[1] == f"`{default}`" if default != "" else '`""`', name
        elif isinstance(default, int):
            assert row[1] == f"{default}", name
        assert ("(templated)" in row[2]) == (name in kind.template_fields), name


def test_the_listener_is_described():
    text = section("dags.md", "Tell of every DAG run and task")
    options = get_provider_info()["config"]["rabbitmq_listener"]["options"]
    assert {row[0].strip("`"): row[1] for row in rows(text)[1:]} == {
        name: option["default"] for name, option in options.items()
    }
    written = configparser.ConfigParser()
    written.read_string(example("dags.md", "ini").text)
    assert set(written["rabbitmq_listener"]) <= set(options)
    shown = json.loads(example("dags.md", "json listener").text)
    notice = task_notice(SimpleNamespace(**shown["data"]), "failed", RuntimeError())
    message = to_message(notice)
    assert message.routing_key == "task_instance.sales_daily.load.failed"
    told = json.loads(message.body)
    assert list(told) == list(shown)
    assert list(told["data"]) == list(shown["data"])
    assert (told["source"], told["type"], told["subject"]) == (shown["source"], shown["type"], shown["subject"])


def test_the_message_of_a_sensor_is_described():
    shown = json.loads(example("dags.md", "json message").text)
    body = json.dumps(shown["body"]).encode()
    properties = pika.BasicProperties(
        message_id=shown["message_id"], content_type=shown["content_type"], delivery_mode=shown["delivery_mode"]
    )
    assert (
        payload(Message(body, properties, shown["exchange"], shown["routing_key"], redelivered=False, tag=1)) == shown
    )


def test_the_links_are_described():
    assert [row[0] for row in rows(section("dags.md", "Links"))[1:]] == [link.name for link in LINKS]


def test_the_spark_connection_is_described():
    hook = SparkStandaloneHook()
    described = {row[0].strip("`"): row[1].strip("`") for row in rows(section("dags.md", "The Spark connection"))[1:]}
    assert described == {"rest-port": str(hook._rest_port), "rest-scheme": hook._scheme}


def test_every_error_of_a_job_is_described():
    known = {
        name
        for name, kind in vars(exceptions).items()
        if isinstance(kind, type)
        and issubclass(kind, (exceptions.JobError, exceptions.SubmissionFailed, exceptions.ConfigurationError))
    } - {"JobError"}
    told = {name: row for row in rows(section("dags.md", "When it fails")) for name in re.findall(r"^`(\w+)`", row[0])}
    assert set(told) == known
    for name, row in told.items():
        assert ("*passes*" in row[0]) is getattr(exceptions, name).transient, name


# Applications ----------------------------------------------------------------------------------------------------------

APPLICATIONS = examples("python application")


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a program by hand, as far as it is outside Airflow."""
    environment = {name: value for name, value in os.environ.items() if name != handover.VARIABLE}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("one", APPLICATIONS, ids=str)
def test_applications_run_by_hand(one: Example, tmp_path: Path):
    (tmp_path / "train.py").write_text(one.text)
    said = run([sys.executable, "-W", "error", "train.py"], tmp_path).stderr
    assert said.startswith("job: Not started by Airflow")
    if "accuracies" in one.text:
        assert said == example("applications.md", "text application").text


def test_an_unmodified_script_runs_in_the_bundle(tmp_path: Path):
    (tmp_path / "count.py").write_text(example("applications.md", "python unmodified").text)
    zipped = bundle.write(tmp_path)
    assert run([sys.executable, str(zipped), "count.py", "10"], tmp_path).stdout == "counting to 10\n"


# The protocol ----------------------------------------------------------------------------------------------------------


def check_event(document: Any) -> None:
    """Valid, and with nothing in it that the schema does not describe."""
    jsonschema.validate(document, SCHEMA, jsonschema.Draft202012Validator)
    assert set(document) <= set(SCHEMA["properties"])
    kind = document["type"].removeprefix(events.TYPE_PREFIX)
    assert set(document["data"]) <= set(SCHEMA["$defs"][kind]["properties"])
    assert datetime.fromisoformat(document["time"]).tzinfo is not None


def test_the_schema_is_one_and_knows_every_kind():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["properties"]["type"]["enum"] == [events.TYPE_PREFIX + kind for kind in events.Kind]
    assert {kind.value for kind in events.Kind} <= set(SCHEMA["$defs"])
    for clause in SCHEMA["allOf"]:
        kind = clause["if"]["properties"]["type"]["const"].removeprefix(events.TYPE_PREFIX)
        assert clause["then"]["properties"]["data"]["$ref"] == f"#/$defs/{kind}"


def test_the_table_of_kinds_is_the_schema():
    table = rows(section("protocol.md", "Kinds of event"))[1:]
    assert [row[0].strip("`") for row in table] == [kind.value for kind in events.Kind]
    for row in table:
        kind = row[0].strip("`")
        assert named(row[3]) == set(SCHEMA["$defs"][kind]["properties"]), kind
        assert ("Last word" in row[2]) == (events.Kind(kind) in events.FINAL), kind


@pytest.mark.parametrize("one", examples("json event"), ids=str)
def test_example_events_are_events(one: Example):
    check_event(json.loads(one.text))
    events.decode(one.text.encode())


@pytest.mark.parametrize(
    "spoil",
    [
        lambda event: event["data"].pop("fraction"),
        lambda event: event["data"].update(fraction=1.5),
        lambda event: event["data"].update(metrics={"accuracy": "high"}),
        lambda event: event.pop("sequence"),
        lambda event: event.update(subject="job 1"),
        lambda event: event.update(type="airflow.spark.job.lost"),
        lambda event: event.update(type="airflow.spark.job.boiled"),
    ],
)
def test_the_schema_refuses_what_is_no_event(spoil: Callable[[Any], object]):
    event = json.loads(example("protocol.md", "json event", "fraction").text)
    spoil(event)
    with pytest.raises(jsonschema.ValidationError):
        check_event(event)


def test_numbers_are_those_of_the_code():
    """Those that a reader may rely on."""
    settings, refused = handover.Settings(), topology.REFUSED_ARGUMENTS
    for name, text in {
        "protocol.md": [
            f"more than {topology.MAX_WORD} characters",
            f"the newest {refused['x-max-length']:,}, {refused['x-max-length-bytes'] // 2**20} MiB",
            f"MiB, for {refused['x-message-ttl'] // 86_400_000} days",
            f"(option `heartbeat`, {OPTIONS['heartbeat'].default:g} s)",
            f"`retention` ({OPTIONS['retention'].default / 86_400:g} days)",
            f"renewed every {settings.will_renewal / 60:g} minutes",
            f"up to {events.MAX_EVENT_BYTES // 2**20} MiB",
            f"A result has {events.MAX_RESULT_BYTES // 2**20} MiB",
            f"more than {events.MAX_VALUES:,} values, or {events.MAX_CONTAINERS:,} lists and objects",
        ],
        "applications.md": [
            f"may have {events.MAX_RESULT_BYTES // 2**20} MiB",
            f"and {events.MAX_VALUES:,} values",
            f"`delivery_timeout` ({settings.delivery_timeout / 60:g} min)",
            f"only the newest {link.MAX_WAITING_PROGRESS} wait",
            f"for up to {session.SETTLE_TIMEOUT:g} s",
            f"`cancel_grace` ({arguments(SparkJobOperator)['cancel_grace'].default:g} s)",
            f"`lost_grace` ({arguments(SparkJobOperator)['lost_grace'].default:g} s)",
            f"`{handover.VARIABLE}`",
        ],
    }.items():
        words = " ".join(page(name).split())
        for one in text:
            assert one in words, f"{name} does not say {one!r}"
