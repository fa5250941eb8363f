"""``RabbitMQSensor``: waits for a message in a queue of one's own."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk.bases.sensor import BaseSensorOperator
from airflow.sdk.exceptions import AirflowSensorTimeout, AirflowSkipException, AirflowTaskTimeout

from airflow_rabbitmq_spark import exceptions
from airflow_rabbitmq_spark.exceptions import ConfigurationError, RabbitMQSparkError
from airflow_rabbitmq_spark.hooks.rabbitmq import RabbitMQHook

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from airflow.sdk import Context

    from airflow_rabbitmq_spark.sensors.receiver import Receiver
    from airflow_rabbitmq_spark.triggers.rabbitmq import Wanted

#: As of triggers.message, which a DAG file need not import.
_DEFAULT_BODY_BYTES = 256 * 2**10
_MAX_BODY_BYTES = 2**20


class RabbitMQSensor(BaseSensorOperator):
    """Wait for a message in a queue, and take it: it becomes the task's XCom.

    While it waits it holds no worker slot, and all waits of a triggerer share one connection. The queue is looked at
    once before that, so that a message that is there already is taken at once.

    **At least once.** The message is acknowledged when Airflow has stored that this task has succeeded with it, and not
    before. Until then whatever dies, or whoever clears the task, the message goes back to its queue; so after a crash at
    the wrong moment it may be seen twice, and it is never lost.

    The XCom is a dictionary: ``body``, with ``body_encoding`` (``json``: the value of a JSON body; ``text``; ``base64``),
    ``headers``, ``routing_key``, ``exchange``, ``redelivered``, ``timestamp`` and AMQP's properties by name.

    :param queue_name: the queue; it must exist, and be for this: what consumes it beside this competes for its messages.
        (templated)
    :param rabbitmq_conn_id: the broker. (templated)
    :param match: which message to wait for; any when not given. Rules by name, all of which must hold, such as
        ``{"routing_key": "orders.paid", "headers.region": ["eu", "uk"], "body.order.id": 7}``; or the import path of a
        function that is given the dictionary and answers True or False. (templated)
    :param unmatched: what to do with a message that does not match. ``hold``: put it aside until the wait ends; then it
        goes back to its place, and meanwhile nobody else sees it. ``reject``: give it up, to where the queue
        dead-letters, or to nowhere.
    :param max_unmatched: how many messages may be put aside, 1 to 1000; at that many the task fails and says what to do.
    :param max_body_bytes: the largest body; at the most 1 MiB, because it goes through Airflow's database.
    :param timeout: how long to wait, in seconds or as a timedelta; then ``AirflowSensorTimeout``, or skipped with
        ``soft_fail``.
    :param deferrable: False waits in the worker and holds its slot; it is told by the broker all the same.

    :raises ConfigurationError: an argument, the connection or the message is wrong; says which and what to write.
    :raises NotFound: there is no such queue, or it was deleted.
    """

    template_fields: Sequence[str] = ("queue_name", "match", "rabbitmq_conn_id")
    ui_color = "#ffe0b2"

    def __init__(
        self,
        *,
        queue_name: str,
        rabbitmq_conn_id: str = "rabbitmq_default",
        match: Mapping[str, Any] | str | None = None,
        unmatched: str = "hold",
        max_unmatched: int = 100,
        max_body_bytes: int = _DEFAULT_BODY_BYTES,
        deferrable: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.queue_name = queue_name
        self.rabbitmq_conn_id = rabbitmq_conn_id
        self.match = match
        self.unmatched = unmatched
        self.max_unmatched = max_unmatched
        self.max_body_bytes = max_body_bytes
        self.deferrable = deferrable
        self._receiver: Receiver | None = None
        if self.mode != "poke":
            raise ConfigurationError(
                f"{self.task_id}: mode={self.mode!r}; a message is not poked for. Leave `mode` out: deferrable=True frees "
                "the worker's slot better than 'reschedule' does."
            )
        if unmatched not in ("hold", "reject"):
            raise ConfigurationError(f"{self.task_id}: unmatched={unmatched!r} must be 'hold' or 'reject'.")
        for argument, value, most in (
            ("max_unmatched", max_unmatched, 1000),
            ("max_body_bytes", max_body_bytes, _MAX_BODY_BYTES),
        ):
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
                raise ConfigurationError(
                    f"{self.task_id}: {argument}={value!r} must be a whole number from 1 to {most:,}."
                )

    def execute(self, context: Context) -> Any:
        """Take the message if it is there; otherwise defer, or wait."""
        from airflow_rabbitmq_spark.sensors.receiver import Receiver

        wanted = self._wanted()
        end_by, which = self._end_by()
        name = f"airflow-rabbitmq-spark {self.dag_id}.{self.task_id} {context['ti'].run_id}"
        receiver = Receiver(RabbitMQHook(self.rabbitmq_conn_id).endpoint(name))
        found = None
        try:
            found = receiver.look(wanted)
            if found is None and not self.deferrable:
                try:
                    found = receiver.wait(wanted, end_by=end_by)
                except TimeoutError:
                    raise self._timed_out(which, wanted.passed_over) from None
            if found is not None:
                self._say(found.content)
                # Airflow calls this when it has stored the success, and not before: that is when it is acknowledged. Where
                # it does not come to that, this process ends and the broker has the message back.
                self._receiver = receiver
                self.on_success_callback = [self._acknowledge, *_callbacks(self.on_success_callback)]
                return found.content
        except AirflowSensorTimeout as error:
            if self.soft_fail or self.never_fail:
                raise AirflowSkipException(str(error)) from error
            raise
        finally:
            if found is None:
                receiver.close()
        self._defer(end_by, which)
        return None

    def _defer(self, end_by: float, which: str) -> None:
        from airflow_rabbitmq_spark.triggers.hold_off import fire_after
        from airflow_rabbitmq_spark.triggers.rabbitmq import RabbitMQTrigger

        self.defer(
            trigger=RabbitMQTrigger(
                queue_name=self.queue_name,
                rabbitmq_conn_id=self.rabbitmq_conn_id,
                match=self.match,
                unmatched=self.unmatched,
                max_unmatched=self.max_unmatched,
                max_body_bytes=self.max_body_bytes,
                end_by=end_by,
                fire_after=fire_after(),
                confirm="receipt",
            ),
            method_name="resume",
            kwargs={"which": which},
        )

    def resume(self, context: Context, event: dict[str, Any], which: str) -> Any:
        """Called when the trigger has fired; leaves it the receipt that the message has arrived."""
        from airflow_rabbitmq_spark.triggers.rabbitmq import RECEIPT_KEY

        status = event["status"]
        if status == "message":
            self._say(event["message"])
            context["ti"].xcom_push(key=RECEIPT_KEY, value=event["receipt"])
            return event["message"]
        if status == "timeout":
            raise self._timed_out(which, event["passed_over"])
        kind = getattr(exceptions, str(event.get("error")), RabbitMQSparkError)
        raise (kind if issubclass(kind, RabbitMQSparkError) else RabbitMQSparkError)(event.get("reason"))

    def _wanted(self) -> Wanted:
        from airflow_rabbitmq_spark.triggers.message import check_rules
        from airflow_rabbitmq_spark.triggers.rabbitmq import Wanted

        if not isinstance(self.queue_name, str) or not self.queue_name:
            raise ConfigurationError(f"{self.task_id}: queue_name={self.queue_name!r} must be the name of a queue.")
        if self.match is not None and not isinstance(self.match, str):
            try:
                check_rules(self.match)
            except ConfigurationError as error:
                raise ConfigurationError(f"{self.task_id}: {error}") from None
        return Wanted(
            self.queue_name,
            match=self.match,
            unmatched=self.unmatched,
            max_unmatched=self.max_unmatched,
            max_body_bytes=self.max_body_bytes,
        )

    def _end_by(self) -> tuple[float, str]:
        """When to give up, and the argument that says so."""
        limits = [(self.timeout, "timeout")]
        if isinstance(self.execution_timeout, timedelta):
            # In the worker Airflow itself ends the task at its execution_timeout, and says less.
            limits.append((max(0.0, self.execution_timeout.total_seconds() - 1), "execution_timeout"))
        seconds, which = min(limits)
        return time.time() + seconds, which

    def _timed_out(self, which: str, passed_over: int) -> BaseException:
        value = self.execution_timeout if which == "execution_timeout" else f"{self.timeout:g} s"
        others = f", and {passed_over} that did not match" if passed_over else ""
        text = (
            f"{self.task_id}: no {'message that matches' if self.match else 'message'} has come to queue "
            f"{self.queue_name!r} within {which}={value}{others}."
        )
        return AirflowTaskTimeout(text) if which == "execution_timeout" else AirflowSensorTimeout(text)

    def _say(self, content: Mapping[str, Any]) -> None:
        self.log.info(
            "Received a message of %s bytes from queue %r, routing key %r, message id %r.",
            content["body_bytes"],
            self.queue_name,
            content["routing_key"],
            content["message_id"],
        )

    def _acknowledge(self, _context: Context) -> None:
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            receiver.acknowledge()


def _callbacks(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]
