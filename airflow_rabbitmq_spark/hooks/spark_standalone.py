"""Submitting to a Spark standalone master over its REST API: no JVM on the worker, and Python too."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import requests
from airflow.sdk import BaseHook, Connection
from airflow.sdk.exceptions import AirflowNotFoundException

from airflow_rabbitmq_spark.exceptions import ConfigurationError, MasterUnreachable, SubmissionFailed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: Seconds to connect to a master and to wait for its answer. It answers a submission at once, before the driver starts.
TIMEOUT = (5, 30)
#: What Spark's own spark-submit asks the master to run for a Python application.
PYTHON_RUNNER = "org.apache.spark.deploy.PythonRunner"
#: Spark replaces this argument by the driver's own copy of the application resource
#: (org.apache.spark.deploy.worker.DriverWrapper).
USER_JAR = "{{USER_JAR}}"

#: What Java 17 must open for Spark. spark-submit says so to each JVM that it starts, and from Spark 4 on the master does;
#: with 3.5 a driver that was submitted by REST could not make a SparkContext
#: (org.apache.spark.launcher.JavaModuleOptions).
OPENED = (
    *(f"java.base/java.{name}" for name in ("lang", "lang.invoke", "lang.reflect", "io", "net", "nio", "util")),
    *(f"java.base/java.{name}" for name in ("util.concurrent", "util.concurrent.atomic")),
    *(f"java.base/sun.{name}" for name in ("nio.ch", "nio.cs", "security.action", "util.calendar")),
    "java.security.jgss/sun.security.krb5",
)
JAVA_OPTIONS = " ".join(["-XX:+IgnoreUnrecognizedVMOptions", *(f"--add-opens={name}=ALL-UNNAMED" for name in OPENED)])
DEFAULT_JAVA_OPTIONS = "spark.driver.defaultJavaOptions"


@dataclass(frozen=True)
class Submission:
    """An application as the master takes it.

    :param resource: URL of the file that the Spark worker fetches for the driver, such as ``file:/tmp/bundle.zip``.
    :param arguments: of the Python program; the first two are the program and its ``--py-files``.
    :param properties: Spark properties. The driver's command line shows them: nothing secret.
    :param environment: the driver's environment variables. They may hold secrets, so they are left out of the repr.
    """

    resource: str
    arguments: Sequence[str]
    properties: Mapping[str, str]
    environment: Mapping[str, str] = field(repr=False)


class SparkStandaloneHook(BaseHook):
    """Talks to the REST submission server of a Spark standalone master.

    :param connection: the connection itself, where it was fetched already.
    :param conn_id: a connection of type ``spark`` whose host is ``spark://HOST`` or ``spark://HOST1:7077,HOST2:7077``.
        Its extras ``rest-scheme`` (``http``) and ``rest-port`` (6066) say where the REST server is, ``web-url`` where
        the master's page is (``http://HOST:8080``).
    """

    conn_name_attr = "conn_id"
    default_conn_name = "spark_default"
    conn_type = "spark"
    hook_name = "Spark"

    def __init__(self, conn_id: str = default_conn_name, *, connection: Connection | None = None) -> None:
        super().__init__()
        self.conn_id = conn_id
        self._connection = connection
        self._masters: list[tuple[str, int]] | None = None
        self._scheme = "http"
        self._rest_port = 6066
        self._web_url = ""

    @property
    def masters(self) -> list[tuple[str, int]]:
        """Host and RPC port of each master, in the order of the connection.

        :raises ConfigurationError: the connection is not one to a standalone master.
        """
        if self._masters is None:
            connection = self._connection or self._find_connection()
            host, extra = connection.host or "", connection.extra_dejson
            if "://" not in host:
                # From a URI, spark://HOST:PORT, the scheme has become the connection's type.
                host = f"{connection.conn_type}://{host}"
            scheme, _, addresses = host.partition("://")
            if scheme != "spark" or not addresses:
                raise ConfigurationError(
                    f"Connection {self.conn_id!r} points to {scheme}://{addresses}: applications are submitted to a Spark "
                    "standalone master, so its host must be spark://HOST (port 7077 if not said otherwise)."
                )
            masters = [_address(one.strip(), connection.port or 7077) for one in addresses.split(",")]
            self._scheme = str(extra.get("rest-scheme") or "http")
            if self._scheme not in ("http", "https"):
                raise ConfigurationError(
                    f"'rest-scheme' in the extra of connection {self.conn_id!r} is {self._scheme!r}: write http or https."
                )
            rest_port = str(extra.get("rest-port") or 6066)
            if not rest_port.isdecimal() or not 0 < int(rest_port) < 2**16:
                raise ConfigurationError(
                    f"'rest-port' in the extra of connection {self.conn_id!r} is {rest_port!r}: write the number that "
                    "the Spark master has as spark.master.rest.port, such as 6066."
                )
            self._rest_port = int(rest_port)
            # Last, because it says that all is known.
            self._masters = masters
            self._web_url = str(extra.get("web-url") or "").rstrip("/")
        return self._masters

    def _find_connection(self) -> Connection:
        try:
            connection: Connection = self.get_connection(self.conn_id)
        except AirflowNotFoundException as error:
            raise ConfigurationError(
                f"The Spark connection {self.conn_id!r} does not exist. Create it in Airflow (Admin, Connections, type "
                f"Spark, host spark://HOST), or set AIRFLOW_CONN_{self.conn_id.upper()}=spark://HOST:7077."
            ) from error
        return connection

    def find(self) -> None:
        """Read the connection now; nothing of this hook asks Airflow later.

        :raises ConfigurationError: as :attr:`masters`.
        """
        _ = self.masters

    @property
    def master_url(self) -> str:
        """The masters as Spark writes them: ``spark://HOST:PORT[,HOST:PORT]``."""
        return "spark://" + ",".join(f"{_bracketed(host)}:{port}" for host, port in self.masters)

    @property
    def web_url(self) -> str:
        """The address of the master's page, for people; no trailing slash."""
        host = self.masters[0][0]
        # The port is Spark's default (spark.master.ui.port).
        return self._web_url or f"http://{_bracketed(host)}:8080"

    def submit(self, submission: Submission) -> str:
        """Submit an application in cluster deploy mode.

        :return: the submission's id, ``driver-...``.
        :raises MasterUnreachable: no master answers; says whether the master is down or its REST server is off.
        :raises SubmissionFailed: the master refused it.
        """
        answer = self._ask(
            "POST",
            "create",
            {
                "action": "CreateSubmissionRequest",
                "clientSparkVersion": "4.0.0",
                "appResource": submission.resource,
                "mainClass": PYTHON_RUNNER,
                "appArgs": list(submission.arguments),
                "sparkProperties": {
                    "spark.master": self.master_url,
                    **submission.properties,
                    DEFAULT_JAVA_OPTIONS: f"{JAVA_OPTIONS} {submission.properties.get(DEFAULT_JAVA_OPTIONS, '')}".rstrip(),
                },
                "environmentVariables": dict(submission.environment),
            },
        )
        if not answer.get("success") or not answer.get("submissionId"):
            raise SubmissionFailed(
                f"The Spark master of connection {self.conn_id!r} refused the application: "
                f"{answer.get('message') or answer}"
            )
        return str(answer["submissionId"])

    def kill(self, submission_id: str) -> bool:
        """Kill a driver; whether the master knew one to kill.

        :raises MasterUnreachable: no master answers.
        """
        return bool(self._ask("POST", f"kill/{submission_id}").get("success"))

    def kill_quietly(self, submission_id: str | None) -> None:
        """Kill a driver as well as it can be done; a failure is only logged."""
        if submission_id is None:
            return
        try:
            self.kill(submission_id)
        except SubmissionFailed as error:
            self.log.warning("The driver %s could not be killed: %s", submission_id, error)

    def status(self, submission_id: str) -> dict[str, Any]:
        """What the master says of a driver: ``driverState``, ``workerHostPort``, ``message``. For a diagnosis.

        :raises MasterUnreachable: no master answers.
        """
        return self._ask("GET", f"status/{submission_id}")

    def _ask(self, method: str, what: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Ask the masters in turn; a standby one answers that it is not the leader."""
        problems: list[SubmissionFailed] = []
        for host, port in self.masters:
            url = f"{self._scheme}://{_bracketed(host)}:{self._rest_port}/v1/submissions/{what}"
            try:
                response = requests.request(method, url, json=body, timeout=TIMEOUT)
                answer = response.json()
            except requests.JSONDecodeError:
                problems.append(
                    SubmissionFailed(
                        f"{_origin(url)} is not a Spark REST submission server (HTTP {response.status_code}, not JSON). "
                        f"Set 'rest-port' in the extra of connection {self.conn_id!r} to the master's "
                        "spark.master.rest.port (6066 by default); 8080 is its web page."
                    )
                )
            except requests.RequestException as error:
                problems.append(self._unreachable(host, port, url, error))
            else:
                if isinstance(answer, dict) and "STANDBY" not in str(answer.get("message", "")):
                    return answer
                problems.append(MasterUnreachable(f"The Spark master at {_origin(url)} is a standby."))
        raise next((problem for problem in problems if not problem.transient), problems[0])

    def _unreachable(self, host: str, port: int, url: str, error: Exception) -> SubmissionFailed:
        if isinstance(error, requests.exceptions.SSLError):
            return SubmissionFailed(
                f"TLS to {_origin(url)} failed: {error}. Set 'rest-scheme' in the extra of connection {self.conn_id!r} to "
                "what the master speaks: http unless spark.ssl.standalone is on."
            )
        if isinstance(error, requests.ConnectionError) and _is_open(host, port):
            return MasterUnreachable(
                f"The Spark master {host}:{port} is up, but nothing answers at {_origin(url)}: REST submission is off, or "
                "on another port. Start the master with spark.master.rest.enabled=true (the default from Spark 4.1 on, "
                f"not before), or set 'rest-port' in the extra of connection {self.conn_id!r}."
            )
        return MasterUnreachable(
            f"No Spark master answers at {host} (REST submission at {_origin(url)}, RPC port {port}): "
            f"{type(error).__name__}. Check that the master runs, and host and port of connection {self.conn_id!r}."
        )


def _address(text: str, default_port: int) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host:
        raise ConfigurationError(f"{text!r} is not the address of a Spark master: write HOST or HOST:PORT.")
    return host, port or default_port


def _bracketed(host: str) -> str:
    """A host as it stands in a URL: an IPv6 address has brackets there."""
    return f"[{host}]" if ":" in host else host


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def _is_open(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=TIMEOUT[0]):
            return True
    except OSError:
        return False
