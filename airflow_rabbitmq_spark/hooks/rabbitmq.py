"""The RabbitMQ hook: an Airflow connection in, a broker's endpoint and everyday operations out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseHook

from airflow_rabbitmq_spark.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow.sdk import Connection

    from airflow_rabbitmq_spark.amqp.endpoint import Endpoint

#: Connection types that are taken. A URI in an environment variable makes its scheme the type.
CONN_TYPES = ("rabbitmq", "amqp", "amqps")


class RabbitMQHook(BaseHook):
    """Talks to the RabbitMQ broker of an Airflow connection.

    :param rabbitmq_conn_id: the connection, of type ``rabbitmq`` (or ``amqp``/``amqps``, as URIs in environment
        variables are).
    """

    conn_name_attr = "rabbitmq_conn_id"
    default_conn_name = "rabbitmq_default"
    conn_type = "rabbitmq"
    hook_name = "RabbitMQ"

    def __init__(self, rabbitmq_conn_id: str = default_conn_name, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rabbitmq_conn_id = rabbitmq_conn_id

    def endpoint(self, connection_name: str | None = None) -> Endpoint:
        """The broker, as the Airflow connection describes it.

        :param connection_name: shown in the broker's list of connections. By default what the connection says, else
            the package, DAG, task and run.
        :raises ConfigurationError: there is no such connection, or it is wrong. No socket was opened.
        """
        from airflow.sdk.exceptions import AirflowNotFoundException  # noqa: PLC0415
        from airflow.sdk.log import mask_secret  # noqa: PLC0415

        try:
            connection = self.get_connection(self.rabbitmq_conn_id)
        except AirflowNotFoundException:
            raise self._not_found() from None
        endpoint = self._build(connection, connection.extra_dejson, connection_name)
        mask_secret(_secrets(endpoint))
        return endpoint

    async def aendpoint(self, connection_name: str | None = None) -> Endpoint:
        """As :meth:`endpoint`, for the triggerer's event loop."""
        from airflow.sdk.exceptions import AirflowNotFoundException  # noqa: PLC0415
        from airflow.sdk.log import amask_secret  # noqa: PLC0415

        try:
            connection = await self.aget_connection(self.rabbitmq_conn_id)
        except AirflowNotFoundException:
            raise self._not_found() from None
        endpoint = self._build(connection, await connection.aextra_dejson(), connection_name)
        await amask_secret(_secrets(endpoint))
        return endpoint

    def _not_found(self) -> ConfigurationError:
        conn_id = self.rabbitmq_conn_id
        return ConfigurationError(
            f"There is no connection {conn_id!r}. Make one of type RabbitMQ in the form under Admin > Connections, or "
            f"set the environment variable AIRFLOW_CONN_{conn_id.upper()}=amqps://user:password@host:5671/vhost for "
            "scheduler, triggerer and workers, or print one from a cloud service's credentials with "
            "`python -m airflow_rabbitmq_spark.connection FILE`."
        )

    def _build(self, connection: Connection, extra: object, connection_name: str | None) -> Endpoint:
        from dataclasses import replace  # noqa: PLC0415

        from airflow_rabbitmq_spark.amqp.endpoint import Endpoint  # noqa: PLC0415

        where = f"connection {self.rabbitmq_conn_id!r}"
        endpoint = Endpoint.from_mapping(connection_options(connection, extra, where=where), where=where)
        name = connection_name or endpoint.connection_name or default_connection_name()
        return replace(endpoint, connection_name=name)


def connection_options(connection: Connection, extra: object, *, where: str) -> Mapping[str, object]:
    """The endpoint's options, from the fields and the extra of an Airflow connection.

    :param extra: the connection's extra, read.
    :param where: names the connection, for errors.
    :raises ConfigurationError: the connection is of another type, or sets something twice.
    """
    if connection.conn_type not in CONN_TYPES:
        raise ConfigurationError(
            f"{where}: its type is {connection.conn_type!r}; choose the type RabbitMQ (in a URI amqps:// or amqp://)."
        )
    if not isinstance(extra, dict):
        raise ConfigurationError(f"{where}: its extra must be a JSON object such as {{}}, with options by name.")
    fields: dict[str, object] = {
        "scheme": None if connection.conn_type == "rabbitmq" else connection.conn_type,
        "hosts": connection.host or None,
        "port": connection.port or None,
        "username": connection.login or None,
        "password": connection.password or None,
        # Airflow cannot tell host from host/: the virtual host with the empty name needs the option.
        "virtual_host": connection.schema or None,
    }
    options = dict(extra)
    for name, value in fields.items():
        if value is None:
            continue
        if options.get(name) not in (None, ""):
            raise ConfigurationError(f"{where}: `{name}` is set in its own field and in the extra; remove one.")
        options[name] = value
    if not any(options.get(name) for name in ("hosts", "credentials", "credentials_secret")):
        raise ConfigurationError(f"{where}: it names no host; fill in the field Host, or paste credentials.")
    return options


def default_connection_name() -> str:
    """The package, and the DAG, task and run where this is called in a task."""
    from airflow_rabbitmq_spark import __version__  # noqa: PLC0415

    package = f"airflow-rabbitmq-spark {__version__}"
    try:
        from airflow.sdk import get_current_context  # noqa: PLC0415

        context = get_current_context()
        instance = context["ti"]
    except (RuntimeError, KeyError, ImportError):
        return package
    return _cut(f"{package} {instance.dag_id}.{instance.task_id} {instance.run_id}")


def _cut(name: str, limit: int = 255) -> str:
    return name.encode()[:limit].decode(errors="ignore")


def _secrets(endpoint: Endpoint) -> list[str]:
    """What Airflow's log masker is to hide, wherever in the connection it was written."""
    tls = endpoint.tls
    candidates = [endpoint.password, tls.passphrase if tls else None, tls.private_key if tls else None]
    return [secret for secret in candidates if secret]


class AMQPSHook(RabbitMQHook):
    """The same for connections of type ``amqps``, which is what an ``amqps://`` URI makes."""

    conn_type = "amqps"
    hook_name = "RabbitMQ (amqps URI)"


class AMQPHook(RabbitMQHook):
    """The same for connections of type ``amqp``, which is what an ``amqp://`` URI makes."""

    conn_type = "amqp"
    hook_name = "RabbitMQ (amqp URI, not encrypted)"
