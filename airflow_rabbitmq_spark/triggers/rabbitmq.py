"""The trigger that waits for a message in a queue of the user's own.

**When a message is acknowledged.** A trigger's event is in memory for a second before Airflow stores it, and the task may
be cleared, or another triggerer take over, at any moment. Airflow 3.3.2 cancels a trigger with the same words when its
event was stored, when a person ended the task, and when another triggerer has it now. So the trigger holds the message
until the task itself has said that it has it: it leaves a receipt as an XCom, and succeeds. Anything else, and the
message goes back to its queue. That is *at least once*: a message may be seen twice, after a crash in between, and is
never lost.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import logging
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_rabbitmq_spark.exceptions import ConfigurationError, RabbitMQSparkError
from airflow_rabbitmq_spark.hooks.rabbitmq import RabbitMQHook
from airflow_rabbitmq_spark.triggers.message import DEFAULT_BODY_BYTES, matches, payload

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from airflow_rabbitmq_spark.amqp.connection import Message
    from airflow_rabbitmq_spark.amqp.multiplexer import Multiplexer, Subscription

log = logging.getLogger(__name__)

#: The key of the XCom by which a task says that it has the message.
RECEIPT_KEY = "rabbitmq_receipt"
#: Messages that a wait may put aside because they do not match.
DEFAULT_MAX_UNMATCHED = 100
#: Seconds a message is held, at the most: a broker closes the channel of who holds one for 30 minutes, and with it the
#: consumers of all other waits (``consumer_timeout``).
HOLD = 20 * 60.0
#: Seconds between two looks whether the task has the message: the first and the largest.
LOOK_INTERVAL = (1.0, 10.0)
#: Bytes above which a body is read on another thread (as of job/watch.py).
READ_ELSEWHERE = 8 * 2**10

#: Confirmations under way; the event loop itself keeps only weak references to its tasks.
_under_way: set[asyncio.Task[None]] = set()


class Source(Protocol):
    """Where messages come from: a subscription, or a look into the queue."""

    async def next(self, timeout: float | None = None) -> Message:
        """The next message.

        :param timeout: seconds.
        :raises TimeoutError: it has not come in time.
        """

    def reject(self, message: Message) -> None:
        """Dead-letter a message."""


@dataclass(frozen=True)
class Found:
    """The message that was waited for.

    :param content: the message as :func:`payload` makes it.
    """

    message: Message
    content: dict[str, Any]


class Wanted:
    """Which message a wait is for.

    :param match: None for any; rules as :func:`matches` has them; or the import path of a function that is given the
        message as a dictionary and says whether it is the one.
    :param unmatched: ``hold`` puts other messages aside until the wait ends, and then they go back to their places;
        ``reject`` gives them up, to where the queue dead-letters.
    :param max_unmatched: how many may be put aside.
    :param max_body_bytes: of the message.
    """

    def __init__(
        self,
        queue: str,
        *,
        match: Mapping[str, Any] | str | None = None,
        unmatched: str = "hold",
        max_unmatched: int = DEFAULT_MAX_UNMATCHED,
        max_body_bytes: int = DEFAULT_BODY_BYTES,
    ) -> None:
        self.queue = queue
        self.unmatched = unmatched
        self.max_unmatched = max_unmatched
        self.max_body_bytes = max_body_bytes
        self._match = match
        #: How many messages were passed over.
        self.passed_over = 0

    @property
    def prefetch(self) -> int:
        """How many messages to hold at a time: one is enough where all that is held is wanted."""
        return 1 if self._match is None or self.unmatched == "reject" else self.max_unmatched

    async def find(self, source: Source, *, until: float | None = None) -> Found:
        """Read until the message is there. It stays unacknowledged, as do those put aside.

        :param until: seconds since the epoch.
        :raises TimeoutError: that time has come.
        :raises ConfigurationError: the message is too large, or the limit of those put aside is reached.
        """
        aside = 0
        while True:
            left = None if until is None else max(0.0, until - time.time())
            message = await source.next(left)
            # A full queue must not keep everybody else waiting.
            await asyncio.sleep(0)
            if len(message.body) > READ_ELSEWHERE:
                content = await asyncio.to_thread(payload, message, max_body_bytes=self.max_body_bytes)
            else:
                content = payload(message, max_body_bytes=self.max_body_bytes)
            if await self._is_wanted(content):
                if content["problem"] is not None:
                    raise ConfigurationError(
                        f"A message in queue {self.queue!r} cannot be read: {content['problem']}. It is left in the queue: "
                        "remove it, or let its publisher say less."
                    )
                if content["body_encoding"] == "none":
                    raise ConfigurationError(
                        f"The message in queue {self.queue!r} has {len(message.body):,} bytes and max_body_bytes is "
                        f"{self.max_body_bytes:,}: it would go through Airflow's database. It is left in the queue. Let "
                        "its publisher send a reference in its place, or raise max_body_bytes."
                    )
                return Found(message, content)
            self.passed_over += 1
            if self.unmatched == "reject":
                source.reject(message)
                continue
            aside += 1
            if aside >= self.max_unmatched:
                raise ConfigurationError(
                    f"The first {aside} messages of queue {self.queue!r} do not match, and a queue cannot be searched "
                    "further than that (max_unmatched). They are left in it. Bind a queue of its own for what this task "
                    "waits for (a topic or headers exchange chooses by itself), write unmatched='reject' to give up "
                    "what does not match, or raise max_unmatched."
                )

    async def _is_wanted(self, content: dict[str, Any]) -> bool:
        if self._match is None:
            return True
        if not isinstance(self._match, str):
            return matches(self._match, content)
        # The author's own function: it may take its time, or raise.
        try:
            function = await asyncio.to_thread(_import, self._match)
            if inspect.iscoroutinefunction(function):
                return bool(await function(content))
            return bool(await asyncio.to_thread(function, content))
        except ConfigurationError:
            raise
        except Exception as error:
            raise ConfigurationError(
                f"`match` is {self._match!r}, and it failed with {type(error).__name__}: {error} on a message of queue "
                f"{self.queue!r}. The message is left in the queue. Let the function return False for what it cannot read."
            ) from error


def _import(path: str) -> Any:
    module, _, name = path.rpartition(".")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(
            f"`match` is {path!r}, which cannot be imported ({error}): write package.module.function, of a module that "
            "triggerer and workers can import."
        ) from error
    if not callable(function):
        raise ConfigurationError(f"`match` is {path!r}, which is no function.")
    return function


async def receive(
    multiplexer: Multiplexer, wanted: Wanted, *, end_by: float | None, not_before: float = 0.0
) -> tuple[Subscription, Found]:
    """Wait for the message and hold it: nothing else is held when this returns.

    It begins anew when the connection was lost meanwhile, or what was put aside has been held for :data:`HOLD` seconds.

    :param end_by: seconds since the epoch; None waits for ever.
    :param not_before: seconds since the epoch until which the message is held before this returns.
    :return: the open subscription, to acknowledge the message or to close, and the message.
    :raises TimeoutError: no such message has come.
    :raises RabbitMQSparkError: the queue or the broker cannot be used; or as of :meth:`Wanted.find`.
    """
    while True:
        subscription = multiplexer.subscribe(wanted.queue, prefetch=wanted.prefetch)
        again = time.time() + HOLD
        kept = False
        try:
            await subscription.__aenter__()
            try:
                found = await wanted.find(subscription, until=again if end_by is None else min(again, end_by))
            except TimeoutError:
                if end_by is not None and time.time() >= end_by:
                    raise
                continue
            await subscription.keep_only(found.message)
            await asyncio.sleep(max(0.0, not_before - time.time()))
            kept = subscription.holds(found.message)
            if kept:
                return subscription, found
        finally:
            if not kept:
                await subscription.__aexit__(None, None, None)


class RabbitMQTrigger(BaseTrigger):
    """Waits for a message and fires it; ``docs/waiting.md`` says what is guaranteed.

    The event is ``{"status": "message", "message": {...}, "receipt": "..."}``, or ``"timeout"`` with ``passed_over``, or
    ``"error"`` with the name of the ``error`` and its ``reason``.

    :param queue_name: the queue; it must exist.
    :param rabbitmq_conn_id: the broker.
    :param match: as of :class:`Wanted`, likewise ``unmatched``, ``max_unmatched`` and ``max_body_bytes``.
    :param end_by: seconds since the epoch when to give up; None for never.
    :param fire_after: seconds since the epoch before which no event is fired.
    :param confirm: when the message is acknowledged. ``receipt``: the task has succeeded and left the event's
        ``receipt`` as XCom :data:`RECEIPT_KEY`. ``resumed``: the task is seen to run again, for tasks that leave none.
    """

    def __init__(
        self,
        *,
        queue_name: str,
        rabbitmq_conn_id: str = "rabbitmq_default",
        match: Mapping[str, Any] | str | None = None,
        unmatched: str = "hold",
        max_unmatched: int = DEFAULT_MAX_UNMATCHED,
        max_body_bytes: int = DEFAULT_BODY_BYTES,
        end_by: float | None = None,
        fire_after: float = 0.0,
        confirm: str = "resumed",
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.queue_name = queue_name
        self.rabbitmq_conn_id = rabbitmq_conn_id
        self.match = match
        self.unmatched = unmatched
        self.max_unmatched = max_unmatched
        self.max_body_bytes = max_body_bytes
        self.end_by = end_by
        self.fire_after = fire_after
        self.confirm = confirm
        self._subscription: Subscription | None = None
        self._held: Held | None = None
        self._may_be_stored = False

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """The class's path and its arguments."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "queue_name": self.queue_name,
                "rabbitmq_conn_id": self.rabbitmq_conn_id,
                "match": self.match,
                "unmatched": self.unmatched,
                "max_unmatched": self.max_unmatched,
                "max_body_bytes": self.max_body_bytes,
                "end_by": self.end_by,
                "fire_after": self.fire_after,
                "confirm": self.confirm,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Fire one event, then hold the message until :meth:`cleanup`."""
        wanted = Wanted(
            self.queue_name,
            match=self.match,
            unmatched=self.unmatched,
            max_unmatched=self.max_unmatched,
            max_body_bytes=self.max_body_bytes,
        )
        try:
            multiplexer = await RabbitMQHook(self.rabbitmq_conn_id).amultiplexer()
            self._subscription, found = await receive(
                multiplexer, wanted, end_by=self.end_by, not_before=self.fire_after
            )
        except TimeoutError:
            event: dict[str, Any] = {"status": "timeout", "passed_over": wanted.passed_over}
        except RabbitMQSparkError as error:
            event = {"status": "error", "error": type(error).__name__, "reason": str(error)}
        else:
            held = Held(self._subscription, found.message, uuid.uuid4().hex, time.time() + HOLD, self.confirm)
            self._held = held
            event = {"status": "message", "message": found.content, "receipt": held.receipt}
        if self._held is None:
            await asyncio.sleep(max(0.0, self.fire_after - time.time()))
        yield TriggerEvent(event)
        # Until Airflow has stored the event, and cancels: before that the message must not go back.
        await asyncio.get_running_loop().create_future()

    async def on_kill(self) -> None:
        """The event was stored, or a person ended the task, or another triggerer has it: it remains to be seen."""
        self._may_be_stored = True

    async def cleanup(self) -> None:
        """Let the message go back; or find out, beside the trigger, whether the task has it."""
        if self._held is not None and self._may_be_stored and self.task_instance is not None:
            subscription, self._subscription = self._subscription, None
            if subscription is not None:
                # Airflow cancels a trigger again every second until it has ended, so this must not be part of it.
                task = asyncio.get_running_loop().create_task(self._held.settle(TaskKey.of(self.task_instance)))
                _under_way.add(task)
                task.add_done_callback(_under_way.discard)
        await self._close()

    async def _close(self) -> None:
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            await subscription.__aexit__(None, None, None)


@dataclass(frozen=True)
class TaskKey:
    """Which task instance a trigger is for."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int

    @classmethod
    def of(cls, task_instance: Any) -> TaskKey:
        """The key of a task instance as the triggerer has it."""
        index = task_instance.map_index
        return cls(
            task_instance.dag_id, task_instance.run_id, task_instance.task_id, index if isinstance(index, int) else -1
        )

    async def state(self) -> str | None:
        """The task instance's state; None when it has none, or is gone."""
        from airflow.sdk.execution_time.comms import GetTaskStates
        from airflow.sdk.execution_time.task_runner import SUPERVISOR_COMMS

        answer: Any = await SUPERVISOR_COMMS.asend(
            GetTaskStates(dag_id=self.dag_id, run_ids=[self.run_id], task_ids=[self.task_id], map_index=self.map_index)
        )
        states = answer.task_states.get(self.run_id, {})
        return next((str(state) for state in states.values() if state is not None), None)

    async def receipt(self) -> Any:
        """The receipt that the task has left."""
        from airflow.sdk.bases.xcom import BaseXCom

        return await BaseXCom.aget_one(
            key=RECEIPT_KEY,
            dag_id=self.dag_id,
            run_id=self.run_id,
            task_id=self.task_id,
            map_index=self.map_index,
        )


#: A task whose event was stored is in one of these until it has ended.
ON_ITS_WAY = frozenset({"scheduled", "queued", "running", "restarting"})


@dataclass
class Held:
    """A message that is held for a task.

    :param receipt: what the task leaves as XCom.
    :param until: seconds since the epoch: no longer.
    """

    subscription: Subscription
    message: Message
    receipt: str
    until: float
    confirm: str

    async def settle(self, task: TaskKey) -> None:
        """Acknowledge the message when the task has it; otherwise let it go back."""
        try:
            if await self._is_taken(task):
                self.subscription.ack(self.message)
            else:
                log.info("Task %s has not taken its message; it goes back to %s.", task, self.subscription.queue)
        finally:
            await self.subscription.__aexit__(None, None, None)

    async def _is_taken(self, task: TaskKey) -> bool:
        pause, state, told = LOOK_INTERVAL[0], None, False
        while time.time() < self.until and self.subscription.holds(self.message):
            try:
                state = await task.state()
                if state == "success":
                    return self.confirm != "receipt" or await task.receipt() == self.receipt
                if state not in ON_ITS_WAY:
                    return False
                if self.confirm != "receipt" and state == "running":
                    return True
            except Exception as error:  # noqa: BLE001 - Airflow's API is away; it comes back, or the time is over
                if not told:
                    log.warning("Cannot ask yet whether task %s has its message: %s", task, error)
                told = True
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, LOOK_INTERVAL[1])
        # Airflow has had the event for long, and no slot for the task: it is on its way to it all the same.
        return state in ON_ITS_WAY
