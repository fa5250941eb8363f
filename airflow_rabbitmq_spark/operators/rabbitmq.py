"""``RabbitMQPublishOperator``: a task that publishes messages and succeeds when the broker has every one of them."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Mapping, Sized
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator

from airflow_rabbitmq_spark.exceptions import ConfigurationError
from airflow_rabbitmq_spark.hooks.rabbitmq import RabbitMQHook

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from airflow.sdk import Context, XComArg

    from airflow_rabbitmq_spark.amqp.publisher import Outgoing

#: Seconds between two lines of progress in the log.
PROGRESS_INTERVAL = 5.0


class RabbitMQPublishOperator(BaseOperator):
    """Publish one message or many to RabbitMQ; the task succeeds when the broker has stored every one in a queue.

    Persistent, mandatory, and confirmed by the broker. A message that no queue is bound for, that the broker refuses
    or that it does not confirm in time fails the task with the reason. While the broker blocks publishers because of
    an alarm, the task waits for the connection's `blocked_connection_timeout` and then fails saying so::

        RabbitMQPublishOperator(
            task_id="announce",
            exchange="orders",
            routing_key="orders.placed",
            message={"day": "{{ ds }}", "rows": "{{ ti.xcom_pull('load') }}"},
            headers={"dag": "{{ dag.dag_id }}"},
        )

    A retry publishes all messages once more: delivery is at least once. Each message has a `message_id` made of DAG,
    run, task and position, the same in every try, so that who receives it can tell it has it already; a task that was
    cleared publishes under new ones.

    The task's XCom is the number of messages.

    :param routing_key: the routing key, or with the default exchange the queue's name. (templated)
    :param exchange: the exchange; empty for the default one, which knows every queue by its name. (templated)
    :param message: one message: bytes are sent as they are, text as UTF-8, anything else as JSON. (templated)
    :param messages: many, in place of ``message``: a list, the output of another task, or a function that is called
        with ``context`` and ``jinja_env`` and returns or yields them, so that they need not all fit in memory. What
        ``RabbitMQHook.message`` makes has a routing key, headers and properties of its own. (templated)
    :param headers: the messages' headers. (templated)
    :param properties: AMQP properties by name, such as ``correlation_id``, ``priority``, or ``expiration`` (milliseconds
        or a timedelta). They replace what would be set here. (templated)
    :param cloudevent: send CloudEvents 1.0 (JSON) whose data the messages are: the events' attributes, of which
        ``type`` is required; ``id``, ``source`` and ``time`` are made up where they are not given. (templated)
    :param mandatory: False lets the broker drop, unsaid, what no queue is bound for.
    :param rabbitmq_conn_id: the broker. (templated)

    :raises PublishFailed: a message was not taken; the subclass and the text say why, and how many were before it.
    :raises ConnectionFailed: the broker cannot be reached, refused us or went away.
    :raises ConfigurationError: an argument, a message or the connection is wrong.
    """

    template_fields: Sequence[str] = (
        "exchange",
        "routing_key",
        "message",
        "messages",
        "headers",
        "properties",
        "cloudevent",
        "rabbitmq_conn_id",
    )
    template_fields_renderers = {"message": "json", "headers": "json", "properties": "json", "cloudevent": "json"}  # noqa: RUF012 - as Airflow declares it
    ui_color = "#ffd8b3"

    def __init__(
        self,
        *,
        routing_key: str = "",
        exchange: str = "",
        message: Any = None,
        messages: Iterable[Any] | XComArg | Callable[..., Iterable[Any]] | None = None,
        headers: Mapping[str, Any] | None = None,
        properties: Mapping[str, Any] | None = None,
        cloudevent: Mapping[str, Any] | None = None,
        mandatory: bool = True,
        rabbitmq_conn_id: str = RabbitMQHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.routing_key = routing_key
        self.exchange = exchange
        self.message = message
        self.messages = messages
        self.headers = headers
        self.properties = properties
        self.cloudevent = cloudevent
        self.mandatory = mandatory
        self.rabbitmq_conn_id = rabbitmq_conn_id
        self._many = messages is not None
        if self._many == (message is not None):
            raise ConfigurationError(
                f"{self.task_id}: give `message` for one or `messages` for many, and not "
                f"{'both' if self._many else 'none'}. A body of JSON null is message=b'null'."
            )

    def execute(self, context: Context) -> int:
        """Publish, and wait until the broker has confirmed everything."""
        progress = _Progress(self)
        with RabbitMQHook(self.rabbitmq_conn_id) as hook:
            count = hook.publish_many(
                self._outgoing(context, self._bodies()), mandatory=self.mandatory, on_progress=progress
            )
        where = f"exchange {self.exchange!r}" if self.exchange else "the default exchange"
        self.log.info("%s by %s, to %s.", progress.describe(count), self.rabbitmq_conn_id, where)
        return count

    def _bodies(self) -> Iterable[Any]:
        if not self._many:
            return [self.message]
        if isinstance(self.messages, (str, bytes, Mapping)) or not isinstance(self.messages, Iterable):
            raise ConfigurationError(
                f"{self.task_id}: `messages` is {type(self.messages).__name__}; give a list, another task's `.output`, "
                "or a function. A template makes text of a list, unless the DAG has render_template_as_native_obj=True."
            )
        return self.messages

    def _outgoing(self, context: Context, bodies: Iterable[Any]) -> Iterator[Outgoing]:
        """Each body as a message, under an id that is the same in every try."""
        from airflow_rabbitmq_spark import cloudevents
        from airflow_rabbitmq_spark.amqp.publisher import Outgoing

        attributes = None if self.cloudevent is None else {"source": self._source(), **self.cloudevent}
        properties = dict(self.properties or {})
        if attributes is not None:
            cloudevents.check_attributes(attributes)
            properties = {"content_type": cloudevents.CONTENT_TYPE, **properties}
        for name, given in (("message_id", properties), ("id", attributes or {})):
            if self._many and name in given:
                raise ConfigurationError(
                    f"{self.task_id}: `{name}` is set for all of `messages`, and must differ. Leave it out: each gets "
                    "one, which is the same in every try."
                )
        self._check(properties)
        ti = context["ti"]
        # Airflow raises max_tries when a task is cleared, and leaves it alone for a retry.
        run = uuid.uuid5(
            uuid.NAMESPACE_URL,
            "/".join(map(str, (ti.dag_id, ti.run_id, ti.task_id, ti.map_index, ti.max_tries))),
        )
        for index, body in enumerate(bodies):
            message_id = str(uuid.uuid5(run, str(index)))
            if isinstance(body, Outgoing):
                body.properties.message_id = body.properties.message_id or message_id
                yield body
                continue
            content = body
            if attributes is not None:
                message_id = str(attributes.get("id", message_id))
                content = cloudevents.encode({**attributes, "id": message_id}, body)
            yield RabbitMQHook.message(
                self.routing_key,
                content,
                exchange=self.exchange,
                properties={"message_id": message_id, **properties},
                headers=self.headers,
            )

    def _source(self) -> str:
        from airflow_rabbitmq_spark.job.topology import word

        return f"/airflow/{word(self.dag_id)}/{word(self.task_id)}"

    def _check(self, properties: Mapping[str, Any]) -> None:
        """Refuse at once what AMQP cannot hold, rather than in the middle of a batch."""
        sample = RabbitMQHook.message("", b"", properties=properties, headers=self.headers).properties
        try:
            sample.encode()
        except Exception as error:  # noqa: BLE001 - pika raises what its encoder runs into
            raise ConfigurationError(
                f"{self.task_id}: AMQP cannot hold these headers or properties ({type(error).__name__}: {error}). "
                "Headers may be texts, whole numbers up to 64 bits, true and false, dates, bytes, null, and lists and "
                "objects of them; properties are texts, `priority`, `delivery_mode` and `timestamp` whole numbers."
            ) from None


class _Progress:
    """Tells the log, once in a while, how far a batch is."""

    def __init__(self, operator: RabbitMQPublishOperator) -> None:
        self._log = operator.log
        self._total = len(operator.messages) if isinstance(operator.messages, Sized) else None
        self._began = self._told = time.monotonic()

    def __call__(self, confirmed: int) -> None:
        now = time.monotonic()
        if now - self._told >= PROGRESS_INTERVAL:
            self._told = now
            of_all = f" of {self._total}" if self._total is not None else ""
            self._log.info("%s%s messages confirmed, %.0f a second.", confirmed, of_all, confirmed / self._taken(now))

    def _taken(self, now: float) -> float:
        return max(now - self._began, 1e-6)

    def describe(self, count: int) -> str:
        """The end of it, in words."""
        taken = self._taken(time.monotonic())
        return f"{count} {'message' if count == 1 else 'messages'} published and confirmed in {taken:.1f} s"
