"""A private Spark standalone cluster: a master with REST submission and one worker."""

from __future__ import annotations

import json
import subprocess
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

from stack.processes import Process, StartFailed, base_environment, free_port

if TYPE_CHECKING:
    from types import TracebackType

#: The worker's offer: enough for a driver, an executor and a second, smaller pair. Spark does not look whether the
#: machine has them.
CORES, MEMORY = 4, "4g"
#: Cores for an application that does not say how many. Spark's default is all there are, and the next one waits.
DEFAULT_CORES = 2


class SparkCluster:
    """A master and a worker from the PySpark of an environment of its own. A context manager.

    :param python: the environment's interpreter; drivers and executors run it too.
    :param rest: whether the master takes submissions by REST.
    :param cores: what the worker offers, as Spark counts.
    :param memory: likewise.
    """

    host = "127.0.0.1"

    def __init__(
        self, directory: Path, python: Path, *, rest: bool = True, cores: int = CORES, memory: str = MEMORY
    ) -> None:
        self.directory = directory.resolve()
        # Not resolved: a virtual environment's interpreter is a link, and its place tells which environment it is.
        self.python = python.absolute()
        found = subprocess.run(
            [
                str(self.python),
                "-c",
                "import pyspark, os; print(os.path.dirname(pyspark.__file__), pyspark.__version__)",
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        if found.returncode:
            raise StartFailed(f"{self.python} has no PySpark (make setup installs it): {found.stderr[-500:]}")
        home, self.version = found.stdout.rsplit(maxsplit=1)
        self.port, self.rest_port, self.web_port = free_port(), free_port(), free_port()
        self.rest_enabled = rest
        self.work = self.directory / "work"
        self._spark_class = f"{home}/bin/spark-class"
        self._environment = base_environment(
            SPARK_HOME=home,
            SPARK_LOCAL_IP=self.host,
            SPARK_CONF_DIR=str(self.directory / "conf"),
            SPARK_LOCAL_DIRS=str(self.directory / "local"),
            SPARK_DAEMON_MEMORY="512m",
            SPARK_DAEMON_JAVA_OPTS="-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
            PYSPARK_PYTHON=str(self.python),
            PYSPARK_DRIVER_PYTHON=str(self.python),
        )
        self._environment["PATH"] = f"{self.python.parent}:{self._environment.get('PATH', '')}"
        master = self._process(
            "Spark master",
            ["org.apache.spark.deploy.master.Master", "--port", str(self.port), "--webui-port", str(self.web_port)],
            SPARK_MASTER_OPTS=f"-Dspark.master.rest.enabled={str(rest).lower()} "
            f"-Dspark.master.rest.port={self.rest_port} -Dspark.master.rest.host={self.host} "
            f"-Dspark.deploy.defaultCores={DEFAULT_CORES}",
        )
        worker = self._process(
            "Spark worker",
            [
                *("org.apache.spark.deploy.worker.Worker", "--webui-port", str(free_port())),
                *("--cores", str(cores), "--memory", memory, "--work-dir", str(self.work), self.master_url),
            ],
        )
        self.master, self.worker = master, worker

    def _process(self, name: str, command: list[str], **environment: str) -> Process:
        return Process(
            name,
            [self._spark_class, command[0], "--host", self.host, *command[1:]],
            log=self.directory / f"{name.split()[1]}.log",
            environment={**self._environment, **environment},
            grace=3.0,
        )

    @property
    def master_url(self) -> str:
        """``spark://HOST:PORT``."""
        return f"spark://{self.host}:{self.port}"

    @property
    def web_url(self) -> str:
        """The master's page."""
        return f"http://{self.host}:{self.web_port}"

    def connection(self, rest_port: int | None = None) -> str:
        """The Airflow connection, as JSON.

        :param rest_port: where REST submission is reached, if not at the master itself.
        """
        extra = {"rest-port": rest_port or self.rest_port, "deploy-mode": "cluster", "web-url": self.web_url}
        return json.dumps({"conn_type": "spark", "host": f"spark://{self.host}", "port": self.port, "extra": extra})

    def __enter__(self) -> SparkCluster:
        try:
            return self.launch().wait()
        except BaseException:
            self.stop()
            raise

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self.stop()

    def launch(self) -> SparkCluster:
        """Start both without waiting; the worker looks for the master until it finds it."""
        for folder in ("conf", "local", "work"):
            (self.directory / folder).mkdir(parents=True, exist_ok=True)
        self.master.start()
        self.worker.start()
        return self

    def wait(self) -> SparkCluster:
        """Wait until the worker has registered."""
        self.worker.wait_until(self._has_worker, timeout=60)
        return self

    def stop(self) -> None:
        """Stop both, with the drivers and executors."""
        for part in (self.worker, self.master):
            part.stop(wait=False)
        for part in (self.worker, self.master):
            part.stop()

    def _has_worker(self) -> bool:
        if not self.master.is_running:
            raise StartFailed(f"The Spark master ended while starting.\n{self.master.tail()}")
        try:
            with urllib.request.urlopen(f"{self.web_url}/json/", timeout=2) as answer:
                return int(json.load(answer)["aliveworkers"]) > 0
        except (OSError, ValueError):
            return False

    def driver_pids(self, application: str) -> list[int]:
        """The Python processes of drivers that run ``application`` (a part of their command line)."""
        # The driver's JVM has the application in its command line too, before PythonRunner starts Python.
        return [
            pid
            for pid in self.worker.pids(containing=application)
            if str(self.python) in _executable_and_arguments(pid)
        ]

    def driver_logs(self) -> str:
        """What the drivers have written so far; for a failure's explanation."""
        return "\n".join(
            f"== {path.relative_to(self.work)}\n{path.read_text(errors='replace')[-4000:]}"
            for path in sorted(self.work.glob("driver-*/std*"))
        )


def _executable_and_arguments(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode()
    except OSError:
        return ""
