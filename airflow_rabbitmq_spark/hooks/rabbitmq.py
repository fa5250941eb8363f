"""The RabbitMQ hook: an Airflow connection in, a broker's endpoint and everyday operations out."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseHook

from airflow_rabbitmq_spark.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
    from types import TracebackType
    from typing import Self

    from airflow.sdk import Connection
    from pika import BlockingConnection

    from airflow_rabbitmq_spark.amqp.blocking import Operations, QueueState
    from airflow_rabbitmq_spark.amqp.connection import Message
    from airflow_rabbitmq_spark.amqp.endpoint import Endpoint
    from airflow_rabbitmq_spark.amqp.multiplexer import Multiplexer, Subscription
    from airflow_rabbitmq_spark.amqp.publisher import Outgoing, Publisher

#: Connection types that are taken. A URI in an environment variable makes its scheme the type.
CONN_TYPES = ("rabbitmq", "amqp", "amqps")


class RabbitMQHook(BaseHook):
    """Talks to the RabbitMQ broker of an Airflow connection.

    As a context manager it keeps its connections open between calls; otherwise each call opens and closes its own::

        with RabbitMQHook() as hook:
            hook.declare_queue("orders")
            hook.publish("orders", {"id": 7})

    What is published counts as published when the broker has confirmed that it is in a queue.

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
        self._kept = False
        self._operations: Operations | None = None
        self._publisher: Publisher | None = None
        self._largest = 0

    def __enter__(self) -> Self:
        self._kept = True
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self._kept = False
        self.close()

    def close(self) -> None:
        """Close what is open. May be called twice, and the hook used again after it."""
        operations, self._operations = self._operations, None
        publisher, self._publisher = self._publisher, None
        if publisher is not None:
            publisher.close()
        if operations is not None:
            operations.close()

    # The broker -----------------------------------------------------------------------------------------------------

    def endpoint(self, connection_name: str | None = None) -> Endpoint:
        """The broker, as the Airflow connection describes it.

        :param connection_name: shown in the broker's list of connections. By default what the connection says, else
            the package, DAG, task and run.
        :raises ConfigurationError: there is no such connection, or it is wrong. No socket was opened.
        """
        from airflow.sdk.exceptions import AirflowNotFoundException
        from airflow.sdk.log import mask_secret

        try:
            connection = self.get_connection(self.rabbitmq_conn_id)
        except AirflowNotFoundException:
            raise self._not_found() from None
        endpoint = self._build(connection, connection.extra_dejson, connection_name)
        mask_secret(_secrets(endpoint))
        return endpoint

    async def aendpoint(self, connection_name: str | None = None) -> Endpoint:
        """As :meth:`endpoint`, for the triggerer's event loop."""
        from airflow.sdk.exceptions import AirflowNotFoundException
        from airflow.sdk.log import amask_secret

        try:
            connection = await self.aget_connection(self.rabbitmq_conn_id)
        except AirflowNotFoundException:
            raise self._not_found() from None
        endpoint = self._build(connection, await connection.aextra_dejson(), connection_name)
        await amask_secret(_secrets(endpoint))
        return endpoint

    def get_conn(self) -> BlockingConnection:
        """A new connection of pika's own, to close after use.

        It goes to the first host that lets us in. Pika answers heartbeats only while a call into it runs: do not
        compute for long between two calls.

        :raises ConnectionFailed: no host let us in.
        """
        from airflow_rabbitmq_spark.amqp.blocking import connect

        return connect(self.endpoint())

    def test_connection(self) -> tuple[bool, str]:
        """Try the connection: what was reached, or which step failed and what to change. Declares and deletes."""
        from airflow_rabbitmq_spark.check import check, shorten
        from airflow_rabbitmq_spark.exceptions import RabbitMQSparkError

        try:
            return True, check(self.endpoint())
        except RabbitMQSparkError as error:
            return False, shorten(str(error))

    async def amultiplexer(self) -> Multiplexer:
        """The one connection that all waits of this event loop on this broker share.

        A connection that was changed in Airflow counts for waits that start some seconds later.

        :raises ConfigurationError: there is no such connection, or it is wrong. No socket was opened.
        """
        from airflow_rabbitmq_spark.hooks.multiplexers import multiplexer_of

        return await multiplexer_of(self)

    @asynccontextmanager
    async def subscribe(self, queue: str, *, prefetch: int | None = None) -> AsyncIterator[Subscription]:
        """The messages of a queue, for people who write their own triggers.

        Thus::

            async with RabbitMQHook(conn_id).subscribe("orders") as messages:
                message = await messages.next()
                ...
                messages.ack(message)

        All subscriptions of a process and broker share one connection, however many there are; it comes back by
        itself when it is lost (``amqp/multiplexer.py``).

        :param prefetch: how many messages may be held unacknowledged; 1 leaves all others to other consumers.
        """
        from airflow_rabbitmq_spark.amqp.multiplexer import PREFETCH

        multiplexer = await self.amultiplexer()
        async with multiplexer.subscribe(queue, prefetch=PREFETCH if prefetch is None else prefetch) as subscription:
            yield subscription

    # Publishing -----------------------------------------------------------------------------------------------------

    def publish(
        self,
        routing_key: str,
        body: object,
        *,
        exchange: str = "",
        properties: Mapping[str, Any] | None = None,
        headers: Mapping[str, Any] | None = None,
        mandatory: bool = True,
    ) -> None:
        """Publish one message, persistent, and wait until the broker has confirmed it.

        :param routing_key: the queue's name, with the default exchange.
        :param body: bytes as they are, text as UTF-8, anything else as JSON.
        :param exchange: empty for the default exchange, which knows every queue by its name.
        :param properties: AMQP properties by name, such as ``correlation_id`` or ``priority``.
        :param headers: the message's headers.
        :param mandatory: whether it is an error that no queue is bound for it. Otherwise it is lost in silence then.
        :raises PublishFailed: it was not taken: no queue for it, refused, not confirmed in time, the broker blocked.
        :raises ConfigurationError: it is too large, or a property is unknown.
        """
        message = self.message(routing_key, body, exchange=exchange, properties=properties, headers=headers)
        with self._publishing() as (publisher, fitting):
            fitting(message)
            publisher.publish(
                message.exchange, message.routing_key, message.body, message.properties, mandatory=mandatory
            )

    def publish_many(
        self,
        messages: Iterable[Outgoing],
        *,
        mandatory: bool = True,
        on_progress: Callable[[int], None] | None = None,
    ) -> int:
        """Publish many messages, a window of them under way at a time; :meth:`message` makes them.

        The first that fails stops the rest, and its error says how many were confirmed before.

        :param messages: taken one by one, so that they need not all fit in memory.
        :param on_progress: called with the count confirmed so far, now and then. By default the log is told.
        :return: how many were published, every one confirmed.
        :raises PublishFailed: as :meth:`publish`.
        """

        def tell(confirmed: int) -> None:
            self.log.info("%s messages published and confirmed.", confirmed)

        with self._publishing() as (publisher, fitting):
            return publisher.publish_many(map(fitting, messages), mandatory=mandatory, on_progress=on_progress or tell)

    @staticmethod
    def message(
        routing_key: str,
        body: object,
        *,
        exchange: str = "",
        properties: Mapping[str, Any] | None = None,
        headers: Mapping[str, Any] | None = None,
    ) -> Outgoing:
        """A message for :meth:`publish_many`; arguments as of :meth:`publish`."""
        from airflow_rabbitmq_spark.amqp.messages import outgoing

        return outgoing(exchange, routing_key, body, properties=properties, headers=headers)

    # Queues and exchanges -------------------------------------------------------------------------------------------

    def declare_queue(self, name: str, **options: Any) -> QueueState:
        """Declare a durable queue; options as of ``amqp.blocking.Operations.declare_queue``."""
        with self._operating() as operations:
            return operations.declare_queue(name, **options)

    def declare_exchange(self, name: str, kind: str = "topic", **options: Any) -> None:
        """Declare a durable exchange; options as of ``amqp.blocking.Operations.declare_exchange``."""
        with self._operating() as operations:
            operations.declare_exchange(name, kind, **options)

    def bind_queue(
        self, queue: str, exchange: str, routing_key: str = "", *, arguments: Mapping[str, Any] | None = None
    ) -> None:
        """Bind a queue to an exchange."""
        with self._operating() as operations:
            operations.bind_queue(queue, exchange, routing_key, arguments=arguments)

    def unbind_queue(
        self, queue: str, exchange: str, routing_key: str = "", *, arguments: Mapping[str, Any] | None = None
    ) -> None:
        """Undo :meth:`bind_queue`."""
        with self._operating() as operations:
            operations.unbind_queue(queue, exchange, routing_key, arguments=arguments)

    def inspect_queue(self, name: str) -> QueueState | None:
        """How many messages and consumers a queue has; ``None`` when there is no such queue."""
        with self._operating() as operations:
            return operations.inspect_queue(name)

    def exchange_exists(self, name: str) -> bool:
        """Whether there is such an exchange."""
        with self._operating() as operations:
            return operations.exchange_exists(name)

    def purge_queue(self, name: str) -> int:
        """Throw away the messages that wait in a queue, and say how many they were."""
        with self._operating() as operations:
            return operations.purge_queue(name)

    def delete_queue(self, name: str, *, if_unused: bool = False, if_empty: bool = False) -> int:
        """Delete a queue, and say how many messages went with it; it is no error that there is none."""
        with self._operating() as operations:
            return operations.delete_queue(name, if_unused=if_unused, if_empty=if_empty)

    def delete_exchange(self, name: str, *, if_unused: bool = False) -> None:
        """Delete an exchange; it is no error that there is none."""
        with self._operating() as operations:
            operations.delete_exchange(name, if_unused=if_unused)

    # Consuming ------------------------------------------------------------------------------------------------------

    def get(self, queue: str) -> Message | None:
        """Take one message out of a queue, at most once; ``None`` when it is empty."""
        with self._operating() as operations:
            return operations.get(queue)

    def consume(
        self,
        queue: str,
        handler: Callable[[Message], None],
        *,
        max_messages: int | None = None,
        idle_timeout: float | None = None,
        prefetch: int | None = None,
    ) -> int:
        """Hand the messages of a queue to ``handler``, each acknowledged when it returns: at least once.

        When ``handler`` raises, its message goes back to the queue and the error comes out of here.

        :param max_messages: stop after so many; ``None`` for no limit.
        :param idle_timeout: stop after so many seconds without a message; ``None`` to wait for ever.
        :param prefetch: how many messages may be fetched ahead.
        :return: how many were handled and acknowledged.
        """
        from airflow_rabbitmq_spark.amqp.blocking import PREFETCH, consume

        return consume(
            self.endpoint(),
            queue,
            handler,
            max_messages=max_messages,
            idle_timeout=idle_timeout,
            prefetch=PREFETCH if prefetch is None else prefetch,
        )

    # Behind it ------------------------------------------------------------------------------------------------------

    @contextmanager
    def _operating(self) -> Iterator[Operations]:
        from airflow_rabbitmq_spark.amqp.blocking import Operations

        if self._operations is None:
            self._operations = Operations(self.endpoint())
        try:
            yield self._operations
        finally:
            if not self._kept:
                self.close()

    @contextmanager
    def _publishing(self) -> Iterator[tuple[Publisher, Callable[[Outgoing], Outgoing]]]:
        """A publisher, and a check that a message is not too large for the connection."""
        from airflow_rabbitmq_spark.amqp.messages import check_size
        from airflow_rabbitmq_spark.amqp.publisher import Publisher

        if self._publisher is None:
            endpoint = self.endpoint()
            self._publisher = Publisher(endpoint)
            self._largest = endpoint.max_message_bytes
        try:
            yield self._publisher, partial(check_size, largest=self._largest)
        finally:
            if not self._kept:
                self.close()

    def _not_found(self) -> ConfigurationError:
        conn_id = self.rabbitmq_conn_id
        variable = f"AIRFLOW_CONN_{conn_id.upper()}"
        if os.environ.get(variable):
            # Airflow keeps the reason to itself, and looks on as if there was nothing.
            return ConfigurationError(
                f"Connection {conn_id!r}: Airflow cannot read the environment variable {variable}. In a URI whatever is "
                "reserved must be percent-encoded, in options too: management_url=https%3A%2F%2Frabbitmq.example.com."
            )
        return ConfigurationError(
            f"There is no connection {conn_id!r}. Make one of type RabbitMQ in the form under Admin > Connections, or "
            f"set the environment variable {variable}=amqps://user:password@host:5671/vhost for "
            "scheduler, triggerer and workers, or print one from a cloud service's credentials with "
            "`python -m airflow_rabbitmq_spark.connection FILE`."
        )

    def _build(self, connection: Connection, extra: object, connection_name: str | None) -> Endpoint:
        from dataclasses import replace

        from airflow_rabbitmq_spark.amqp.endpoint import Endpoint

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
    from airflow_rabbitmq_spark import __version__

    package = f"airflow-rabbitmq-spark {__version__}"
    try:
        from airflow.sdk import get_current_context

        context = get_current_context()
        instance = context["ti"]
    except (RuntimeError, KeyError, ImportError):
        return package
    return _cut(f"{package} {instance.dag_id}.{instance.task_id} {instance.run_id}")


def _cut(name: str, limit: int = 255) -> str:
    return name.encode()[:limit].decode(errors="ignore")


def _secrets(endpoint: Endpoint) -> list[Any]:
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
