"""A private Airflow: scheduler, DAG processor, triggerer and API server, with SQLite and the LocalExecutor."""

from __future__ import annotations

import base64
import json
import os
import secrets
import subprocess
import sys
import time
import uuid
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

import requests

from stack.processes import Process, StartFailed, base_environment, free_port

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

#: The components, and the commands that start them. What people ask and what tasks ask is answered by a process each: the
#: first writes its audit log on its event loop, and where a task's request has SQLite's lock and waits for the same loop
#: to commit, all of Airflow stands still until SQLite's time-out (3.3.2, ``airflow.api_fastapi.logging.decorators``).
COMPONENTS = {
    "api-server": ("api-server", "--apps", "core"),
    "execution-api": ("api-server", "--apps", "execution"),
    "scheduler": ("scheduler",),
    "dag-processor": ("dag-processor",),
    "triggerer": ("triggerer",),
}


class Airflow:
    """An Airflow. A context manager; each component can be stopped and started by itself.

    :param dags: the DAG folder.
    :param connections: Airflow connections by id, as URI or JSON.
    :param environment: further variables.
    :param python: the interpreter of Airflow's environment.
    :param standalone: run ``airflow standalone`` in place of the components; that is how people try Airflow.
    """

    host = "127.0.0.1"
    username = "admin"

    def __init__(
        self,
        directory: Path,
        *,
        dags: Path,
        connections: Mapping[str, str],
        environment: Mapping[str, str] | None = None,
        python: Path | None = None,
        standalone: bool = False,
    ) -> None:
        self.directory = directory.resolve()
        self.directory.mkdir(parents=True, exist_ok=True)
        self.password = secrets.token_urlsafe(12)
        self.port = free_port()
        self.url = f"http://{self.host}:{self.port}"
        execution_port = self.port if standalone else free_port()
        self._execution_url = f"http://{self.host}:{execution_port}/execution/"
        passwords = self.directory / "passwords.json"
        passwords.touch(mode=0o600)
        passwords.write_text(json.dumps({self.username: self.password}))
        bin_folder = (python or Path(sys.executable)).parent
        self._airflow = str(bin_folder / "airflow")
        self.environment = {
            **base_environment(
                AIRFLOW_HOME=str(self.directory),
                AIRFLOW__CORE__DAGS_FOLDER=str(dags.resolve()),
                AIRFLOW__CORE__EXECUTOR="LocalExecutor",
                AIRFLOW__CORE__LOAD_EXAMPLES="False",
                AIRFLOW__CORE__PARALLELISM="32",
                AIRFLOW__CORE__MAX_ACTIVE_TASKS_PER_DAG="32",
                AIRFLOW__CORE__FERNET_KEY=base64.urlsafe_b64encode(os.urandom(32)).decode(),
                AIRFLOW__CORE__EXECUTION_API_SERVER_URL=self._execution_url,
                AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS=f"{self.username}:admin",
                AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE=str(passwords),
                AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION="False",
                # Seconds to wait for who writes; with SQLite's 5 a scheduler on a busy machine ended with an error.
                AIRFLOW__DATABASE__SQL_ALCHEMY_CONN=f"sqlite:///{self.directory}/airflow.db?timeout=60",
                # And a connection for each who asks: requests that hold one while they wait for another, of a pool of 15,
                # stop everything for the 30 seconds of the pool's own time-out.
                AIRFLOW__DATABASE__SQL_ALCHEMY_POOL_ENABLED="False",
                AIRFLOW__API__HOST=self.host,
                AIRFLOW__API__PORT=str(self.port),
                AIRFLOW__API__BASE_URL=self.url,
                AIRFLOW__API__WORKERS="1",
                AIRFLOW__API__SECRET_KEY=secrets.token_hex(16),
                AIRFLOW__API_AUTH__JWT_SECRET=secrets.token_hex(32),
                AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT=str(free_port()),
                AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT=str(free_port()),
                AIRFLOW__SCHEDULER__ENABLE_HEALTH_CHECK="False",
                AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC="2",
                AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD="10",
                AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL="10",
                AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL="30",
                PYTHONUNBUFFERED="1",
                PYTHONWARNINGS="ignore",
            ),
            **{f"AIRFLOW_CONN_{name.upper()}": value for name, value in connections.items()},
            **(environment or {}),
        }
        self.environment["PATH"] = f"{bin_folder}:{self.environment.get('PATH', '')}"
        commands = {"standalone": ("standalone",)} if standalone else COMPONENTS
        self.components = {name: self._component(name, *command) for name, command in commands.items()}
        if not standalone:
            self.components["execution-api"].environment["AIRFLOW__API__PORT"] = str(execution_port)
        self._session = requests.Session()
        self._session.trust_env = False

    def _component(self, name: str, *command: str) -> Process:
        return Process(
            f"airflow {name}",
            [self._airflow, *command],
            log=self.directory / f"{name}.log",
            environment=self.environment,
            grace=4.0,
        )

    def __enter__(self) -> Airflow:
        try:
            return self.launch().wait()
        except BaseException:
            self.stop()
            raise

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self.stop()

    def launch(self) -> Airflow:
        """Make the database and start everything, without waiting."""
        if "standalone" not in self.components:
            self.run("db", "migrate")
        for component in self.components.values():
            component.start()
        return self

    def wait(self) -> Airflow:
        """Wait until every component reports that it is healthy."""
        first = next(iter(self.components.values()))
        first.wait_until(self._is_healthy, timeout=120)
        return self

    def stop(self) -> None:
        """Stop everything, tasks too."""
        for wait in (False, True):
            for component in self.components.values():
                component.stop(wait=wait)

    def add_triggerer(self) -> Process:
        """Start one more triggerer; it is stopped with the rest."""
        name = f"triggerer-{len(self.components)}"
        extra = self._component(name, "triggerer")
        extra.environment["AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT"] = str(free_port())
        self.components[name] = extra
        extra.start()
        return extra

    def _is_healthy(self) -> bool:
        for component in self.components.values():
            if not component.is_running:
                raise StartFailed(f"{component.name} ended while starting.\n{component.tail()}")
        try:
            self._session.get(f"{self._execution_url}health", timeout=5).raise_for_status()
            health = self._session.get(f"{self.url}/api/v2/monitor/health", timeout=5).json()
        except (requests.RequestException, ValueError):
            return False
        return all(
            (health.get(part) or {}).get("status") == "healthy" for part in ("scheduler", "triggerer", "dag_processor")
        )

    def run(self, *arguments: str, timeout: float = 120) -> str:
        """Run an ``airflow`` command and return what it prints.

        :raises StartFailed: it fails; with the end of what it said.
        """
        done = subprocess.run(
            [self._airflow, *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if done.returncode:
            raise StartFailed(f"airflow {' '.join(arguments)} failed:\n{(done.stdout + done.stderr)[-3000:]}")
        return done.stdout

    # The REST API ----------------------------------------------------------------------------------------------------

    def api(self, method: str, path: str, *, attempts: int = 0, **arguments: Any) -> Any:
        """Call ``/api/v2`` and return the JSON of the answer.

        :param attempts: how often to ask where there is no answer, or an error that may pass. By default what only reads
            is asked for 5 times, and all else once.
        :raises requests.HTTPError: the answer is an error.
        :raises requests.Timeout: there is no answer.
        """
        if "Authorization" not in self._session.headers:
            login = {"username": self.username, "password": self.password}
            token = self._session.post(f"{self.url}/auth/token", json=login, timeout=30).json()["access_token"]
            self._session.headers["Authorization"] = f"Bearer {token}"
        attempts = attempts or (5 if method == "GET" else 1)
        while True:
            attempts -= 1
            try:
                answer = self._session.request(method, f"{self.url}/api/v2/{path}", timeout=60, **arguments)
            except requests.Timeout:
                if not attempts:
                    raise
            else:
                if answer.status_code < 500 or not attempts:
                    break
            # SQLite lets nobody read while somebody has written for long, and Airflow gives up after a while.
            time.sleep(1)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def wait_for_dag(self, dag_id: str, *, timeout: float = 60) -> None:
        """Wait until the DAG processor has stored a DAG."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                self.api("GET", f"dags/{dag_id}/details")
            except requests.HTTPError as error:
                errors = self.api("GET", "importErrors")["import_errors"]
                if errors:
                    raise StartFailed(f"{errors[0]['filename']}: {errors[0]['stack_trace']}") from error
                if time.monotonic() > deadline:
                    raise StartFailed(f"Airflow knows no DAG {dag_id!r} after {timeout:g} s.") from error
                time.sleep(0.3)
            else:
                return

    def trigger(self, dag_id: str, **conf: Any) -> str:
        """Start a run of a DAG and return its id."""
        self.wait_for_dag(dag_id)
        run_id = f"manual__{uuid.uuid4().hex}"
        body = {"dag_run_id": run_id, "logical_date": None, "conf": conf}
        try:
            self.api("POST", f"dags/{dag_id}/dagRuns", attempts=5, json=body)
        except requests.HTTPError as error:
            # The run is there when an attempt that was answered with an error got through.
            if error.response.status_code != HTTPStatus.CONFLICT:
                raise
        return run_id

    def run_state(self, dag_id: str, run_id: str) -> str:
        """``queued``, ``running``, ``success`` or ``failed``.

        :raises StartFailed: Airflow's scheduler has ended by itself, so that nothing more will become of the run.
        """
        scheduler = self.components.get("scheduler")
        if scheduler is not None and not scheduler.is_running:
            raise StartFailed(f"{scheduler.name} ended by itself.\n{scheduler.tail()}")
        return str(self.api("GET", f"dags/{dag_id}/dagRuns/{run_id}")["state"])

    def wait_for_run(self, dag_id: str, run_id: str, *, timeout: float = 180) -> str:
        """Wait until a run has ended; its state."""
        return self.wait_for(
            lambda: self.run_state(dag_id, run_id), {"success", "failed"}, f"run {run_id} of {dag_id}", timeout=timeout
        )

    def task(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> dict[str, Any]:
        """A task instance."""
        path = f"dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}"
        found: dict[str, Any] = self.api("GET", path if map_index < 0 else f"{path}/{map_index}")
        return found

    def wait_for_task(self, dag_id: str, run_id: str, task_id: str, *states: str, timeout: float = 120) -> str:
        """Wait until a task is in one of ``states``; which one."""
        return self.wait_for(
            lambda: str(self.task(dag_id, run_id, task_id)["state"]), set(states), f"task {task_id}", timeout=timeout
        )

    def wait_for(self, look: Any, states: set[str], what: str, *, timeout: float) -> str:
        """Wait until ``look()`` answers one of ``states``."""
        deadline = time.monotonic() + timeout
        while (state := look()) not in states:
            if time.monotonic() > deadline:
                raise AssertionError(f"{what} is {state} and not one of {sorted(states)} after {timeout:g} s.")
            time.sleep(0.3)
        return str(state)

    def xcom(self, dag_id: str, run_id: str, task_id: str, key: str = "return_value") -> Any:
        """An XCom's value, or None when there is none."""
        path = f"dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/xcomEntries/{key}"
        try:
            return self.api("GET", path, params={"deserialize": "true"})["value"]
        except requests.HTTPError as error:
            if error.response.status_code == 404:
                return None
            raise

    def log(self, dag_id: str, run_id: str, task_id: str, try_number: int = 1) -> str:
        """All that a task's log shows, the trigger's part too, as the web page would."""
        path = f"dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/logs/{try_number}"
        answer = self.api("GET", path, params={"full_content": "true"}, headers={"Accept": "application/json"})
        lines = []
        for entry in answer["content"]:
            if isinstance(entry, str):
                lines.append(entry)
                continue
            lines.append(str(entry.get("event", "")))
            lines += [f"{error['exc_type']}: {error['exc_value']}" for error in entry.get("error_detail") or []]
        return "\n".join(lines)
