"""What ``SparkSubmitOperator``'s arguments mean to a standalone master's REST submission."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from airflow_rabbitmq_spark.exceptions import ConfigurationError
from airflow_rabbitmq_spark.hooks.spark_standalone import USER_JAR, Submission

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from airflow_rabbitmq_spark.operators.spark_job import SparkJobOperator

#: The operator's attribute and the Spark property that spark-submit makes of it
#: (org.apache.spark.deploy.SparkSubmit, "options").
PROPERTIES = {
    "files": "spark.files",
    "jars": "spark.jars",
    "_archives": "spark.archives",
    "py_files": "spark.submit.pyFiles",
    "packages": "spark.jars.packages",
    "exclude_packages": "spark.jars.excludes",
    "_repositories": "spark.jars.repositories",
    "driver_class_path": "spark.driver.extraClassPath",
    "driver_memory": "spark.driver.memory",
    "_driver_memory": "spark.driver.memory",
    "_executor_memory": "spark.executor.memory",
    "_executor_cores": "spark.executor.cores",
    "_total_executor_cores": "spark.cores.max",
    "_num_executors": "spark.executor.instances",
}
#: Arguments that would change who the application runs as; a standalone cluster cannot do that.
IMPOSSIBLE = ("keytab", "principal", "proxy_user")
#: Arguments that mean nothing without spark-submit or YARN.
WITHOUT_MEANING = ("_yarn_queue", "_use_krb5ccache", "_spark_binary", "_verbose")


def check(operator: SparkJobOperator) -> None:
    """Refuse what cannot work, before anything is declared or submitted.

    :raises ConfigurationError: names the argument and what to write instead.
    """
    application = operator.application
    if not application:
        raise ConfigurationError(f"{operator.task_id}: 'application' is empty. Give the path of a Python file.")
    if operator._java_class or application.endswith(".jar"):
        raise ConfigurationError(
            f"{operator.task_id}: {application!r} is a Java application; SparkJobOperator runs Python applications. Use "
            "SparkSubmitOperator for it."
        )
    if (scheme := urlsplit(application).scheme) not in ("", "file", "local"):
        raise ConfigurationError(
            f"{operator.task_id}: the application {application!r} is a {scheme} URL; Spark standalone runs Python "
            "applications only from a path that every Spark worker can read. Put it on a shared volume."
        )
    for name in IMPOSSIBLE:
        if getattr(operator, name, None):
            raise ConfigurationError(
                f"{operator.task_id}: {name!r} has no effect on a Spark standalone cluster, where the application runs "
                "as the Spark worker's user. Leave it out."
            )
    for name in WITHOUT_MEANING:
        if getattr(operator, name, None):
            operator.log.warning("%r has no meaning for REST submission and is ignored.", name.lstrip("_"))


def submission(operator: SparkJobOperator, *, bundle: str, environment: Mapping[str, str]) -> Submission:
    """The operator's arguments as a submission.

    Later wins: the properties file, the operator's own arguments, ``conf``. So it is with spark-submit.

    :param bundle: URL of the bundle, which is what Spark runs; it then runs the application.
    :param environment: variables for the driver beside ``env_vars``.
    """
    properties: dict[str, str] = {}
    if operator.properties_file:
        properties.update(read_properties(Path(operator.properties_file)))
    properties["spark.app.name"] = operator.name
    for attribute, name in PROPERTIES.items():
        if (value := getattr(operator, attribute, None)) is not None and value != "":
            properties[name] = str(value)
    properties.update({str(name): _text(value) for name, value in (operator.conf or {}).items()})
    py_files = properties.get("spark.submit.pyFiles", "")
    if py_files:
        # PySpark looks for them among the files that executors fetch; spark-submit puts them there
        # (org.apache.spark.deploy.SparkSubmit, "mergeFileLists(args.files, args.pyFiles)").
        properties["spark.files"] = ",".join(filter(None, (properties.get("spark.files"), py_files)))
    return Submission(
        resource=bundle,
        arguments=[
            USER_JAR,
            py_files,
            _path(operator.application),
            *(str(argument) for argument in operator.application_args or []),
        ],
        properties=properties,
        environment={
            **{str(name): str(value) for name, value in (operator.env_vars or {}).items()},
            **environment,
        },
    )


def read_properties(path: Path) -> dict[str, str]:
    """Read a Spark properties file, which Spark reads as Java's ``Properties.load`` does.

    A name, then white space, ``=`` or ``:``, then the value; ``#`` or ``!`` starts a comment; a backslash at the end of
    a line continues it, elsewhere it takes the next character as it is.
    https://docs.oracle.com/en/java/javase/17/docs/api/java.base/java/util/Properties.html#load(java.io.Reader)

    :raises ConfigurationError: it cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigurationError(f"The properties file {str(path)!r} cannot be read: {reason}.") from error
    properties = {}
    for line in _logical_lines(text):
        # The pattern matches any line that is not empty.
        if match := _PROPERTY.fullmatch(line):
            name, value = (_ESCAPE.sub(_unescape, part) for part in match.groups())
            # Spark trims values (org.apache.spark.util.Utils.getPropertiesFromFile).
            properties[name] = value.strip()
    return properties


_PROPERTY = re.compile(r"((?:[^\\=:\s]|\\.)*)\s*[=:]?\s*(.*)")
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.)")
_ESCAPES = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}


def _unescape(match: re.Match[str]) -> str:
    escaped = match[1]
    return chr(int(escaped[1:], 16)) if len(escaped) > 1 else _ESCAPES.get(escaped, escaped)


def _logical_lines(text: str) -> Iterator[str]:
    """Lines without comments, with what a backslash at their end continues."""
    begun = ""
    for natural in text.splitlines():
        line = natural.lstrip()
        if not begun and (not line or line[0] in "#!"):
            continue
        backslashes = len(line) - len(line.rstrip("\\"))
        if backslashes % 2:
            begun += line[:-1]
            continue
        yield begun + line
        begun = ""
    if begun:
        yield begun


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _path(application: str) -> str:
    parts = urlsplit(application)
    return parts.path if parts.scheme in ("file", "local") else application
