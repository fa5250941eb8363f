"""What SparkSubmitOperator's arguments become in a REST submission, by table; and the connection to the master."""

from __future__ import annotations

import json
import os

import pytest

from airflow_rabbitmq_spark.exceptions import ConfigurationError
from airflow_rabbitmq_spark.hooks.spark_standalone import USER_JAR, SparkStandaloneHook, Submission
from airflow_rabbitmq_spark.operators.spark_job import SparkJobOperator
from airflow_rabbitmq_spark.operators.standalone import read_properties, submission


def submitted(**arguments) -> Submission:
    task = SparkJobOperator(**{"task_id": "train", "application": "/jobs/a.py", "name": "n", **arguments})
    return submission(task, bundle="file:/tmp/bundle.zip", environment={"OURS": "1"})


def test_the_bundle_runs_the_application():
    assert submitted() == Submission(
        resource="file:/tmp/bundle.zip",
        arguments=[USER_JAR, "", "/jobs/a.py"],
        properties={"spark.app.name": "n"},
        environment={"OURS": "1"},
    )


@pytest.mark.parametrize(
    ("argument", "value", "property_name", "written"),
    [
        ("name", "my job", "spark.app.name", "my job"),
        ("files", "/a,/b", "spark.files", "/a,/b"),
        ("jars", "/a.jar", "spark.jars", "/a.jar"),
        ("archives", "/env.zip#env", "spark.archives", "/env.zip#env"),
        ("packages", "g:a:1", "spark.jars.packages", "g:a:1"),
        ("exclude_packages", "g:b", "spark.jars.excludes", "g:b"),
        ("repositories", "https://r.example", "spark.jars.repositories", "https://r.example"),
        ("driver_class_path", "/c", "spark.driver.extraClassPath", "/c"),
        ("driver_memory", "2g", "spark.driver.memory", "2g"),
        ("executor_memory", "1g", "spark.executor.memory", "1g"),
        ("executor_cores", 2, "spark.executor.cores", "2"),
        ("total_executor_cores", 4, "spark.cores.max", "4"),
        ("num_executors", 3, "spark.executor.instances", "3"),
        ("conf", {"spark.some.flag": True}, "spark.some.flag", "true"),
        ("conf", {"spark.some.number": 1.5}, "spark.some.number", "1.5"),
    ],
)
def test_an_argument_becomes_a_property(argument, value, property_name, written):
    assert submitted(**{argument: value}).properties == {"spark.app.name": "n", property_name: written}


@pytest.mark.parametrize(
    ("arguments", "files"),
    [
        ({"py_files": "/p.py,/q.zip"}, "/p.py,/q.zip"),
        ({"py_files": "/p.py,/q.zip", "files": "/a"}, "/a,/p.py,/q.zip"),
        ({"conf": {"spark.submit.pyFiles": "/p.py,/q.zip", "spark.files": "/a"}}, "/a,/p.py,/q.zip"),
    ],
)
def test_python_files_go_to_driver_and_executors(arguments, files):
    given = submitted(**arguments)
    assert given.arguments[1] == "/p.py,/q.zip"
    assert given.properties["spark.submit.pyFiles"] == "/p.py,/q.zip"
    assert given.properties["spark.files"] == files


@pytest.mark.parametrize("argument", ["files", "jars", "packages", "driver_memory"])
def test_what_a_template_left_empty_is_left_out(argument):
    assert submitted(**{argument: ""}).properties == {"spark.app.name": "n"}


@pytest.mark.parametrize(
    ("application", "path"),
    [("/a b/c.py", "/a b/c.py"), ("file:///a/c.py", "/a/c.py"), ("local:/a/c.py", "/a/c.py"), ("c.py", "c.py")],
)
def test_the_application_and_its_arguments(application, path):
    given = submitted(application=application, application_args=["--n", 3, 0.5, True, None], py_files="/p.py")
    assert given.arguments == [USER_JAR, "/p.py", path, "--n", "3", "0.5", "True", "None"]


def test_environment_variables_are_texts_and_ours_win():
    given = submitted(env_vars={"A": 1, "OURS": "theirs"})
    assert given.environment == {"A": "1", "OURS": "1"}


def test_conf_wins_over_arguments_and_arguments_over_the_properties_file(tmp_path):
    file = tmp_path / "spark.conf"
    file.write_text("spark.app.name file\nspark.driver.memory 1g\nspark.executor.memory 1g\nspark.only.here yes\n")
    given = submitted(
        properties_file=str(file),
        driver_memory="2g",
        executor_memory="2g",
        conf={"spark.executor.memory": "3g", "spark.only.conf": 1},
    )
    assert given.properties == {
        "spark.app.name": "n",
        "spark.driver.memory": "2g",
        "spark.executor.memory": "3g",
        "spark.only.here": "yes",
        "spark.only.conf": "1",
    }


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("spark.a b", {"spark.a": "b"}),
        ("spark.a\tb c", {"spark.a": "b c"}),
        ("spark.a=b", {"spark.a": "b"}),
        ("spark.a:b", {"spark.a": "b"}),
        ("  spark.a =  b  ", {"spark.a": "b"}),
        ("spark.a     spark://h:7077", {"spark.a": "spark://h:7077"}),
        ("spark.java -Dx=y -Dz='1 2'", {"spark.java": "-Dx=y -Dz='1 2'"}),
        ("spark.a=b=c", {"spark.a": "b=c"}),
        ("spark.a", {"spark.a": ""}),
        ("# spark.a b\n! spark.c d\n\n   # e f", {}),
        ("spark.a b\\\n     c\nspark.d e", {"spark.a": "bc", "spark.d": "e"}),
        (r"spark.a C:\\x\ty\u0041", {"spark.a": "C:\\x\tyA"}),
        (r"spark\ a b", {"spark a": "b"}),
        ("spark.a b\r\nspark.c d", {"spark.a": "b", "spark.c": "d"}),
        ("spark.a 1\nspark.a 2", {"spark.a": "2"}),
        ("spark.a b\\", {"spark.a": "b"}),
    ],
)
def test_a_properties_file_is_read_as_spark_reads_it(tmp_path, line, expected):
    file = tmp_path / "spark.conf"
    file.write_bytes(line.encode())
    assert read_properties(file) == expected


def test_a_properties_file_that_cannot_be_read_is_named(tmp_path):
    missing, binary = tmp_path / "no.conf", tmp_path / "binary.conf"
    binary.write_bytes(b"\xff\xfe\x00")
    for file, reason in ((missing, "No such file or directory"), (tmp_path, "Is a directory"), (binary, "not UTF-8")):
        with pytest.raises(ConfigurationError) as caught:
            submitted(properties_file=os.fspath(file))
        assert str(file) in str(caught.value)
        assert reason in str(caught.value)


# The connection to the master ----------------------------------------------------------------------------------------


def hook(monkeypatch, host="spark://one", port=None, **extra) -> SparkStandaloneHook:
    connection = {"conn_type": "spark", "host": host, "port": port, "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_MASTER", json.dumps(connection))
    return SparkStandaloneHook("master")


@pytest.mark.parametrize(
    ("host", "port", "masters", "url"),
    [
        ("spark://one", None, [("one", 7077)], "spark://one:7077"),
        ("spark://one", 7078, [("one", 7078)], "spark://one:7078"),
        ("one", 7078, [("one", 7078)], "spark://one:7078"),
        ("spark://one:1,two:2", None, [("one", 1), ("two", 2)], "spark://one:1,two:2"),
        ("spark://one, two", 7078, [("one", 7078), ("two", 7078)], "spark://one:7078,two:7078"),
        ("spark://[::1]:7077", None, [("::1", 7077)], "spark://[::1]:7077"),
    ],
)
def test_where_the_masters_are(monkeypatch, host, port, masters, url):
    found = hook(monkeypatch, host, port)
    assert found.masters == masters
    assert found.master_url == url


@pytest.mark.parametrize(
    ("host", "extra", "words"),
    [
        ("yarn://one", {}, r"points to yarn://one: .* its host must be spark://HOST"),
        ("k8s://https://one:443", {}, "points to k8s://https://one:443"),
        ("local://", {}, "points to local://"),
        ("spark://", {}, "points to spark://"),
        ("spark://one:x", {}, "'one:x' is not the address of a Spark master: write HOST or HOST:PORT"),
        ("spark://one,,two", {}, "'' is not the address of a Spark master"),
        ("spark://one", {"rest-port": "x"}, "'rest-port' in the extra of connection 'master' is 'x': write the number"),
        ("spark://one", {"rest-port": 70000}, "'rest-port' .* is '70000'"),
        ("spark://one", {"rest-scheme": "tcp"}, "'rest-scheme' .* is 'tcp': write http or https"),
    ],
)
def test_a_connection_that_is_to_no_standalone_master_is_refused(monkeypatch, host, extra, words):
    refused = hook(monkeypatch, host, **extra)
    for _ in range(2):  # the second look is not taken for a good one
        with pytest.raises(ConfigurationError, match=words):
            _ = refused.masters


def test_a_connection_that_does_not_exist():
    with pytest.raises(
        ConfigurationError, match=r"'nowhere' does not exist. .* AIRFLOW_CONN_NOWHERE=spark://HOST:7077"
    ):
        _ = SparkStandaloneHook("nowhere").masters
