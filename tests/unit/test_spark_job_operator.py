"""SparkJobOperator as a DAG author meets it: its arguments, its templates, what it refuses, and what it never shows."""

from __future__ import annotations

import inspect
import json
import re
from datetime import timedelta

import pytest
from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator
from airflow.sdk import DAG
from airflow.serialization.serialized_objects import DagSerialization

from airflow_rabbitmq_spark.amqp.endpoint import Endpoint
from airflow_rabbitmq_spark.exceptions import ConfigurationError
from airflow_rabbitmq_spark.job.handover import VARIABLE, Handover
from airflow_rabbitmq_spark.job.topology import Job
from airflow_rabbitmq_spark.operators import standalone
from airflow_rabbitmq_spark.operators.spark_job import SparkJobOperator

CANARY = "canary-4f7c"
OWN = {
    "rabbitmq_conn_id",
    "deferrable",
    "start_timeout",
    "lost_grace",
    "cancel_grace",
    "delivery_timeout",
    "max_result_bytes",
    "bundle",
}
#: One value for every argument of SparkSubmitOperator.
THEIRS = {
    "application": "a.py",
    "conf": {"spark.a": "b"},
    "conn_id": "spark",
    "files": "f",
    "py_files": "p.py",
    "archives": "x.zip",
    "driver_class_path": "c",
    "jars": "j.jar",
    "java_class": "org.Main",
    "packages": "g:a:1",
    "exclude_packages": "g:b",
    "repositories": "https://repository.example",
    "total_executor_cores": 4,
    "executor_cores": 2,
    "executor_memory": "1g",
    "driver_memory": "2g",
    "keytab": "k",
    "principal": "p",
    "proxy_user": "u",
    "name": "n",
    "num_executors": 3,
    "status_poll_interval": 7,
    "application_args": ["1"],
    "env_vars": {"A": "B"},
    "verbose": True,
    "spark_binary": "spark3-submit",
    "properties_file": "spark.conf",
    "yarn_queue": "q",
    "deploy_mode": "cluster",
    "use_krb5ccache": True,
    "post_submit_commands": ["true"],
    "track_driver_via_k8s_api": True,
    "yarn_track_via_rm_api": True,
    "yarn_rm_auth": None,
    "openlineage_inject_parent_job_info": True,
    "openlineage_inject_transport_info": True,
    "reconnect_on_retry": None,
    "durable": False,
}


def operator(**arguments) -> SparkJobOperator:
    return SparkJobOperator(**{"task_id": "train", "application": "/jobs/a.py", **arguments})


def names(function) -> set[str]:
    return {p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY}


def test_every_argument_of_spark_submit_operator_is_accepted_and_kept():
    # A new one in the next release of the provider shows here, so that somebody decides what it means.
    assert names(SparkSubmitOperator.__init__) == set(THEIRS)
    assert names(SparkJobOperator.__init__) - {"name"} == OWN
    ours, theirs = operator(**THEIRS), SparkSubmitOperator(task_id="train", **THEIRS)
    kept = {
        name: value
        for name, value in vars(theirs).items()
        if any(value is given or value == given for given in THEIRS.values()) and not name.startswith("_BaseOperator")
    }
    assert len(kept) > len(THEIRS) / 2
    for name, value in kept.items():
        assert getattr(ours, name) == value, name


def test_all_that_spark_submit_operator_templates_is_templated():
    assert set(SparkJobOperator.template_fields) == {*SparkSubmitOperator.template_fields, "rabbitmq_conn_id", "bundle"}
    texts = {
        name: f"{name}-{{{{ ds }}}}"
        for name in SparkJobOperator.template_fields
        if name not in {"conf", "application_args", "env_vars", "post_submit_commands"}
    }
    task = operator(
        **texts,
        conf={"spark.x": "{{ ds }}"},
        application_args=["{{ ds }}", {"day": "{{ ds }}"}],
        env_vars={"DAY": "{{ ds }}"},
        post_submit_commands=["echo {{ ds }}"],
    )
    task.render_template_fields({"ds": "2026-01-02"})
    for name in texts:
        assert getattr(task, name) == f"{name}-2026-01-02"
    assert task.conf == {"spark.x": "2026-01-02"}
    assert task.application_args == ["2026-01-02", {"day": "2026-01-02"}]
    assert task.env_vars == {"DAY": "2026-01-02"}
    assert task.post_submit_commands == ["echo 2026-01-02"]


def test_a_dag_with_it_is_serialized_as_airflow_stores_it():
    with DAG("d", schedule=None) as dag:
        operator(**{**THEIRS, "java_class": None})
    stored = json.loads(json.dumps(DagSerialization.to_dict(dag)))
    again = DagSerialization.from_dict(stored).get_task("train")
    assert again.task_type == "SparkJobOperator"
    assert again.application_args == ["1"]


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("start_timeout", 0),
        ("start_timeout", float("inf")),
        ("start_timeout", float("nan")),
        ("start_timeout", timedelta(0)),
        ("start_timeout", timedelta(days=31)),
        ("start_timeout", None),
        ("lost_grace", -1),
        ("lost_grace", 1501),
        ("lost_grace", "30"),
        ("lost_grace", None),
        ("cancel_grace", -0.1),
        ("cancel_grace", 21),
        ("delivery_timeout", -1),
        ("delivery_timeout", 86_401),
        ("max_result_bytes", 0),
        ("max_result_bytes", 2**20 + 1),
    ],
)
def test_a_number_out_of_range_is_refused_when_the_dag_is_read(argument, value):
    with pytest.raises(ConfigurationError, match=rf"^train: {argument}=.* must be a number from [\d,]+ to [\d,]+\.$"):
        operator(**{argument: value})


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("start_timeout", 1),
        ("start_timeout", timedelta(minutes=5)),
        ("lost_grace", 0),
        ("lost_grace", 1500),
        ("cancel_grace", 0),
        ("cancel_grace", 20),
        ("delivery_timeout", 0),
        ("max_result_bytes", 1),
    ],
)
def test_the_ends_of_the_ranges_are_good(argument, value):
    operator(**{argument: value})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"application": ""}, "'application' is empty. Give the path of a Python file."),
        ({"application": "/a.jar"}, "'/a.jar' is a Java application; .* Use SparkSubmitOperator for it."),
        ({"java_class": "org.Main"}, "is a Java application; SparkJobOperator runs Python applications"),
        ({"application": "s3a://b/a.py"}, "is a s3a URL; .* only from a path that every Spark worker can read"),
        ({"application": "https://h/a.py"}, "is a https URL; .* Put it on a shared volume"),
        ({"keytab": "/k"}, "'keytab' has no effect on a Spark standalone cluster, .* Leave it out."),
        ({"principal": "p"}, "'principal' has no effect"),
        ({"proxy_user": "u"}, "'proxy_user' has no effect"),
        ({"deploy_mode": "client"}, "deploy_mode='client'; .* Leave deploy_mode out, or write 'cluster'."),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_asked(arguments, words):
    # No connection is defined: were one looked for, the message would be another.
    with pytest.raises(ConfigurationError, match=words) as caught:
        operator(**arguments).execute({})
    assert str(caught.value).startswith("train: ")


@pytest.mark.parametrize("application", ["/a.py", "relative/a.py", "file:///a.py", "local:/a.py"])
def test_a_path_of_any_form_is_good(application):
    standalone.check(operator(application=application))


def test_what_has_no_meaning_is_said_and_ignored(capsys):
    standalone.check(operator(yarn_queue="q", use_krb5ccache=True, spark_binary="spark3-submit", verbose=True))
    log = capsys.readouterr().out
    for name in ("yarn_queue", "use_krb5ccache", "spark_binary", "verbose"):
        assert f"'{name}' has no meaning for REST submission and is ignored." in log


def test_no_secret_outside_the_one_variable_that_spark_redacts(monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_RABBITMQ_DEFAULT", f"amqps://user:{CANARY}@broker.example:5671/")
    task = operator(application_args=["1"], conf={"spark.a": "b"}, env_vars={"A": "B"})
    task.name = "n"
    handover = Handover(Job.new("d", "train", "airflow.spark"), Endpoint.from_uri(f"amqps://user:{CANARY}@b.example/"))
    environment = handover.to_environment()
    submission = standalone.submission(task, bundle="file:/b.zip", environment=environment)
    variables = submission.environment
    assert {**variables} == {"A": "B", **environment}
    # org.apache.spark.internal.config.SECRET_REDACTION_PATTERN
    assert re.search(r"(?i)secret|password|token|access[.]?key|credential", VARIABLE)
    rendered = {name: getattr(task, name) for name in task.template_fields}
    elsewhere = [
        *submission.arguments,
        *submission.properties.items(),
        rendered,
        repr(task),
        repr(handover),
        str(handover),
        repr(submission),
    ]
    for shown in (CANARY, environment[VARIABLE]):
        assert all(shown not in str(one) for one in elsewhere)
