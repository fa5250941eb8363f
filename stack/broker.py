"""A private RabbitMQ node: TLS only, fresh certificates, loopback, free ports."""

from __future__ import annotations

import base64
import json
import os
import secrets
import signal
import socket
import ssl
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow_rabbitmq_spark.amqp.endpoint import Endpoint
from stack.certificates import make_authority
from stack.processes import Process, StartFailed, base_environment, free_port

if TYPE_CHECKING:
    from types import TracebackType

#: Where Debian's package keeps the scripts. The wrappers on PATH switch to the system's user and its node.
SCRIPTS = "usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin"
#: The folder of a Debian whose RabbitMQ is to be run instead of the installed one; ``rabbitmq4.sh`` makes one.
ROOT_VARIABLE = "RABBITMQ_ROOT"
ENTER = Path(__file__).with_name("rabbitmq4.sh")


def installation(root: Path | None = None) -> list[str]:
    """The command to run a script of the server's, but for the script's name at the end of its last word.

    :param root: the folder of another Debian; what :data:`ROOT_VARIABLE` says when not given.
    :raises StartFailed: RabbitMQ is not installed there.
    """
    if root is None and (named := os.environ.get(ROOT_VARIABLE)):
        root = Path(named)
    top = (root or Path("/")).resolve()
    found = sorted(top.glob(SCRIPTS))
    if not found and root is not None:
        raise StartFailed(f"There is no RabbitMQ in {top}, which {ROOT_VARIABLE} names: run {ENTER} build {top}")
    if not found:
        raise StartFailed("RabbitMQ is not installed: apt-get install rabbitmq-server (make setup does it as root).")
    scripts = f"/{found[-1].relative_to(top)}/"
    return [scripts] if root is None else [str(ENTER), "run", str(top), scripts]


class Broker:
    """A RabbitMQ node. A context manager; :meth:`stop` and :meth:`start` keep its ports and its data.

    It has a user ``airflow`` that may do everything and a user ``nobody`` that may connect and declare nothing, and the
    vhosts ``/`` and ``other``; ``nobody`` has no access to ``other``.

    :param plain: listen for plain AMQP too.
    :param configuration: further lines for ``rabbitmq.conf``.
    :param root: the folder of another Debian whose RabbitMQ to run, such as ``.rabbitmq-4``; see :func:`installation`.
    """

    host = "127.0.0.1"
    user = "airflow"
    virtual_host = "/"

    def __init__(
        self, directory: Path, *, plain: bool = False, configuration: str = "", root: Path | None = None
    ) -> None:
        self.directory = directory.resolve()
        self.port = free_port()
        self.plain_port = free_port() if plain else None
        self.password = secrets.token_urlsafe(16)
        self._installation = installation(root)
        self.authority = make_authority(self.directory / "tls")
        self.ca_file, self.ca_pem = self.authority.ca_file, self.authority.ca_pem
        self.node = f"broker{self.port}@localhost"
        self._environment = base_environment(
            HOME=str(self.directory),
            RABBITMQ_NODENAME=self.node,
            RABBITMQ_CONFIG_FILE=str(self.directory / "rabbitmq.conf"),
            RABBITMQ_MNESIA_BASE=str(self.directory / "data"),
            RABBITMQ_LOG_BASE=str(self.directory / "log"),
            RABBITMQ_ENABLED_PLUGINS_FILE=str(self.directory / "enabled_plugins"),
            RABBITMQ_PID_FILE=str(self.directory / "pid"),
            RABBITMQ_DIST_PORT=str(free_port()),
            # A port mapper of its own, which ends with the node: nothing is shared with a broker that is not ours.
            ERL_EPMD_PORT=str(free_port()),
            ERL_EPMD_ADDRESS=self.host,
            RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none "
            "-kernel inet_dist_use_interface {127,0,0,1}",
        )
        self._write_configuration(configuration)
        self.process = Process(
            "RabbitMQ",
            self._script("rabbitmq-server"),
            log=self.directory / "broker.log",
            environment=self._environment,
            grace=15.0,
        )

    def _script(self, name: str) -> list[str]:
        *enter, scripts = self._installation
        return [*enter, scripts + name]

    def _write_configuration(self, more: str) -> None:
        definitions = self.directory / "definitions.json"
        definitions.touch(mode=0o600)
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        definitions.write_text(
            json.dumps(
                {
                    "users": [
                        {"name": self.user, "password": self.password, "tags": "administrator"},
                        {"name": "nobody", "password": self.password, "tags": ""},
                    ],
                    "vhosts": [{"name": "/"}, {"name": "other"}],
                    "permissions": [
                        {"user": self.user, "vhost": "/", **everything},
                        {"user": self.user, "vhost": "other", **everything},
                        {"user": "nobody", "vhost": "/", "configure": "", "write": "", "read": ".*"},
                    ],
                }
            )
        )
        (self.directory / "enabled_plugins").write_text("[].\n")
        (self.directory / "rabbitmq.conf").write_text(
            f"listeners.tcp = none\n"
            f"listeners.ssl.1 = {self.host}:{self.port}\n"
            f"ssl_options.cacertfile = {self.authority.ca_file}\n"
            f"ssl_options.certfile = {self.authority.certificate_file}\n"
            f"ssl_options.keyfile = {self.authority.key_file}\n"
            f"load_definitions = {definitions}\n"
            f"disk_free_limit.absolute = 50MB\n"
            f"vm_memory_high_watermark.relative = 0.4\n"
            f"log.console = true\nlog.console.level = info\nlog.file = false\n{more}\n"
        )
        if self.plain_port is not None:
            text = (self.directory / "rabbitmq.conf").read_text()
            text = text.replace("listeners.tcp = none", f"listeners.tcp.1 = {self.host}:{self.plain_port}")
            (self.directory / "rabbitmq.conf").write_text(text)

    def __enter__(self) -> Broker:
        try:
            return self.start()
        except BaseException:
            self.process.stop()
            raise

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self.process.stop()

    def launch(self) -> Broker:
        """Start without waiting; :meth:`wait` waits."""
        self.process.start()
        return self

    def wait(self) -> Broker:
        """Wait until AMQP answers."""
        self.process.wait_until(self._answers, timeout=60)
        return self

    def start(self) -> Broker:
        """Start and wait until AMQP answers."""
        return self.launch().wait()

    def stop(self) -> None:
        """Stop in good order."""
        self.process.stop()

    def kill(self) -> None:
        """SIGKILL the virtual machine: what was not on disk is gone."""
        self.process.signal(signal.SIGKILL, containing="beam")
        self.process.stop()

    def suspend(self) -> None:
        """SIGSTOP: connections stay open and nothing answers."""
        self.process.signal(signal.SIGSTOP, containing="beam")

    def resume(self) -> None:
        """SIGCONT."""
        self.process.signal(signal.SIGCONT, containing="beam")

    def _answers(self) -> bool:
        context = ssl.create_default_context(cafile=str(self.ca_file))
        try:
            with (
                socket.create_connection((self.host, self.port), timeout=2) as plain,
                context.wrap_socket(plain, server_hostname=self.host) as connection,
            ):
                connection.sendall(b"AMQP\x00\x00\x09\x01")
                return connection.recv(1) == b"\x01"
        except OSError:
            return False

    def uri(self, *, user: str | None = None, password: str | None = None, vhost: str | None = None) -> str:
        """``amqps://`` with everything but the CA; the arguments replace what is right."""
        name = quote(self.user if user is None else user, safe="")
        secret = quote(self.password if password is None else password, safe="")
        path = quote(self.virtual_host if vhost is None else vhost, safe="")
        return f"amqps://{name}:{secret}@{self.host}:{self.port}/{path}"

    def connection(self) -> str:
        """The URI of an Airflow connection, CA included as a path."""
        return f"{self.uri()}?ca_certificate={quote(str(self.ca_file), safe='')}"

    def endpoint(self, **options: Any) -> Endpoint:
        """The endpoint of user ``airflow``."""
        given: dict[str, Any] = {"ca_certificate": self.ca_pem, **options}
        return Endpoint.from_uri(self.uri(), **given)

    def ctl(self, *arguments: str) -> str:
        """Run ``rabbitmqctl`` and return what it prints."""
        environment = {**os.environ, **self._environment}
        done = subprocess.run(
            [*self._script("rabbitmqctl"), "--node", self.node, "--quiet", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"rabbitmqctl {arguments[0]} failed: {done.stderr or done.stdout}")
        return done.stdout

    def evaluate(self, expression: str, *, timeout: float = 60.0) -> Any:
        """Evaluate an Erlang expression in the node, and return what JSON can hold of it.

        What the tests ask again and again goes this way: ``rabbitmqctl`` starts a virtual machine of its own for each
        question, which takes 0.7 s of a CPU to the 0.01 s of ``erl_call``, and a dozen seconds on a busy machine.

        :raises RuntimeError: the expression has an error, or the node does not answer.
        """
        code = (
            f'R = try rabbit_json:encode(#{{<<"value">> => begin {expression} end}}) '
            'catch C:E -> rabbit_json:encode(#{<<"error">> => iolist_to_binary(io_lib:format("~p:~p", [C, E]))}) '
            "end, io:put_chars(base64:encode(R)).\n"
        )
        *enter, _ = self._installation
        done = subprocess.run(
            [*enter, "/usr/bin/erl_call", "-sname", self.node, "-r", "-no_result_term", "-fetch_stdout", "-e"],
            input=code,
            env={**os.environ, **self._environment},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if not done.stdout:
            raise RuntimeError(f"The node {self.node} did not answer {expression!r}: {done.stderr}")
        answer = json.loads(base64.b64decode(done.stdout))
        if "error" in answer:
            raise RuntimeError(f"{expression!r} failed: {answer['error']}")
        return answer["value"]

    @property
    def version(self) -> str:
        """RabbitMQ's version, such as ``3.10.8``."""
        return str(self.evaluate("list_to_binary(rabbit_misc:version())"))

    def queues(self, vhost: str = "/") -> set[str]:
        """The names of all queues."""
        return set(self.evaluate(f'[N || {{resource, _, _, N}} <- rabbit_amqqueue:list_names(<<"{vhost}">>)]'))

    def queue_sizes(self) -> dict[str, int]:
        """The messages in each queue, those that somebody holds included."""
        found: dict[str, int] = self.evaluate(
            "maps:from_list([{N, M} || [{name, {resource, _, _, N}}, {messages, M}] "
            '<- rabbit_amqqueue:info_all(<<"/">>, [name, messages])])'
        )
        return found

    def delete_queue(self, name: str) -> None:
        """Delete a queue, whoever uses it."""
        self.evaluate(
            f'{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, <<"{name}">>)), '
            'rabbit_amqqueue:delete(Q, false, false, <<"tests">>), ok'
        )

    def connections(self) -> list[dict[str, Any]]:
        """Of each connection: ``state``, ``channels``, ``timeout`` (its heartbeat, s), ``frame_max`` and the client's
        properties of type string.
        """
        found: list[dict[str, Any]] = self.evaluate(
            "[maps:from_list([{I, V} || {I, V} <- C, I =/= client_properties] ++ "
            "[{K, V} || {K, longstr, V} <- proplists:get_value(client_properties, C, [])]) || C <- "
            "rabbit_networking:connection_info_all([state, channels, timeout, frame_max, client_properties])]"
        )
        return found

    def connection_names(self) -> list[str]:
        """What each client calls its connection."""
        return [connection.get("connection_name", "") for connection in self.connections()]

    def close_connections(self, reason: str) -> None:
        """Close all, as an operator would."""
        self.evaluate(
            f'[rabbit_networking:close_connection(P, "{reason}") || P <- rabbit_networking:connections()], ok'
        )

    def set_alarm(self, *, on: bool) -> None:
        """Raise or end a memory alarm: publishers are blocked while it lasts."""
        self.evaluate(f"vm_memory_monitor:set_vm_memory_high_watermark({'0.000001' if on else '0.4'})")

    def set_option(self, name: str, value: int) -> None:
        """Set one of the node's settings, for what is opened from now on."""
        self.evaluate(f"application:set_env(rabbit, {name}, {value})")
