"""The sensor's and the trigger's reading of a real queue: what is taken, what goes back, what is said."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from types import SimpleNamespace

import pytest
from airflow.sdk.exceptions import AirflowSensorTimeout, AirflowSkipException, AirflowTaskTimeout, TaskDeferred
from airflow.sdk.execution_time.comms import _new_encoder

from airflow_rabbitmq_spark.exceptions import ConfigurationError, NotFound
from airflow_rabbitmq_spark.hooks.rabbitmq import RabbitMQHook
from airflow_rabbitmq_spark.sensors.rabbitmq import RabbitMQSensor
from airflow_rabbitmq_spark.triggers import rabbitmq as module
from airflow_rabbitmq_spark.triggers.rabbitmq import RECEIPT_KEY, RabbitMQTrigger

USER_ACTION = "__airflow_user_action__"


@pytest.fixture
def hook(broker, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_SENSOR", broker.connection())
    with RabbitMQHook("sensor") as opened:
        yield opened


@pytest.fixture
def queue(hook):
    name = f"sensor-{uuid.uuid4().hex}"
    hook.declare_queue(name)
    yield name
    hook.delete_queue(name)


class TaskInstance(SimpleNamespace):
    """The part of a task instance that the sensor uses."""

    def __init__(self):
        super().__init__(dag_id="d", run_id="r", task_id="t", map_index=-1, xcoms={})

    def xcom_push(self, key, value):
        self.xcoms[key] = value


def sensor(queue, **arguments):
    return RabbitMQSensor(task_id="t", queue_name=queue, rabbitmq_conn_id="sensor", **arguments)


def waiting(hook, queue, count, *, within=15.0):
    """The queue has ``count`` messages ready; wait for it, because what goes back takes a moment."""
    deadline = time.monotonic() + within
    while (state := hook.inspect_queue(queue)).messages != count:
        assert time.monotonic() < deadline, state
        time.sleep(0.05)
    return True


# In the worker ------------------------------------------------------------------------------------------------------


def test_what_is_there_is_taken_at_once_and_acknowledged_after_success(hook, queue):
    headers = {
        "bytes": b"\xff\0",
        "time": datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc),
        "decimal": Decimal("1.5"),
        "big": 2**63 - 1,
        "table": {"deep": [1, None, True]},
        "null character": "a\0b",
    }
    hook.publish(queue, {"id": 7}, headers=headers, properties={"message_id": "m", "priority": 3, "timestamp": 0})
    task = sensor(queue)
    content = task.execute({"ti": TaskInstance()})
    assert json.loads(json.dumps(content)) == content
    # What Airflow sends a trigger's event with takes JSON's own types only, and no class that is derived from them.
    _new_encoder().encode(content)
    assert (content["body"], content["body_encoding"], content["message_id"]) == ({"id": 7}, "json", "m")
    assert content["timestamp"] == "1970-01-01T00:00:00+00:00"
    assert content["headers"] == {
        "bytes": "/wA=",
        "time": "2026-01-02T03:04:05+00:00",
        "decimal": "1.5",
        "big": 2**63 - 1,
        "table": {"deep": [1, None, True]},
        "null character": "a\ufffdb",
    }
    # Airflow has not stored the success yet: until then the message is held, and not gone.
    assert hook.inspect_queue(queue).messages == 0
    task.on_success_callback[0]({})
    assert hook.delete_queue(queue) == 0


def test_a_worker_that_ends_before_success_gives_it_back(hook, queue):
    hook.publish(queue, "x")
    task = sensor(queue)
    assert task.execute({"ti": TaskInstance()})["body"] == "x"
    # What the end of the process does.
    task._receiver.close()
    assert waiting(hook, queue, 1)


def test_an_empty_queue_defers_and_says_until_when(queue):
    with pytest.raises(TaskDeferred) as deferred:
        sensor(queue, timeout=60).execute({"ti": TaskInstance()})
    path, arguments = deferred.value.trigger.serialize()
    again = RabbitMQTrigger(**arguments)
    assert again.serialize() == (path, arguments)
    assert arguments["confirm"] == "receipt"
    assert arguments["end_by"] == pytest.approx(time.time() + 60, abs=30)


def test_waiting_in_the_worker(hook, queue):
    with pytest.raises(
        AirflowSensorTimeout, match=rf"t: no message has come to queue '{queue}' within timeout=0.5 s\."
    ):
        sensor(queue, timeout=0.5, deferrable=False).execute({"ti": TaskInstance()})
    with pytest.raises(AirflowTaskTimeout, match="within execution_timeout=0:00:01"):
        sensor(queue, execution_timeout=timedelta(seconds=1), deferrable=False).execute({"ti": TaskInstance()})
    with pytest.raises(AirflowSkipException):
        sensor(queue, timeout=0, deferrable=False, soft_fail=True).execute({"ti": TaskInstance()})
    task = sensor(queue, deferrable=False, match={"body.n": 2})

    async def later():
        await asyncio.sleep(0.5)
        for number in range(4):
            hook.publish(queue, {"n": number})

    async def both():
        return await asyncio.gather(asyncio.to_thread(task.execute, {"ti": TaskInstance()}), later())

    assert asyncio.run(both())[0]["body"] == {"n": 2}
    # The others are back while this one is held.
    assert waiting(hook, queue, 3)
    task.on_success_callback[0]({})
    assert [json.loads(hook.get(queue).body)["n"] for _ in range(3)] == [0, 1, 3]


def test_rules(hook, queue):
    hook.publish(queue, {"type": "com.example.paid", "data": {"lines": [{"sku": "a"}]}}, headers={"region": "uk"})
    for match in (
        {"routing_key": "elsewhere"},
        {"headers.region": ["eu", "us"]},
        {"body.data.lines.1.sku": "a"},
        {"body.data.lines.0.sku": "a", "headers.region": "eu"},
        {"headers.region": None},
    ):
        with pytest.raises(TaskDeferred):
            sensor(queue, match=match).execute({"ti": TaskInstance()})
        assert waiting(hook, queue, 1)
    for match in (
        {"routing_key": queue},
        {"headers.region": ["eu", "uk"], "body.type": "com.example.paid"},
        {"body.data.lines.0.sku": "a"},
        "tests.broker.test_sensor.is_paid",
    ):
        task = sensor(queue, match=match)
        assert task.execute({"ti": TaskInstance()})["headers"] == {"region": "uk"}
        task._receiver.close()
        assert waiting(hook, queue, 1)


def is_paid(message):
    """A user's function for ``match``."""
    return message["body"]["type"].endswith(".paid")


def test_mistakes_say_what_to_write(hook, queue):
    execute = {"ti": TaskInstance()}
    with pytest.raises(NotFound, match="nowhere"):
        sensor("nowhere").execute(execute)
    with pytest.raises(ConfigurationError, match="mode='reschedule'"):
        sensor(queue, mode="reschedule")
    with pytest.raises(ConfigurationError, match=r"max_body_bytes=2000000 must be a whole number from 1 to 1,048,576"):
        sensor(queue, max_body_bytes=2_000_000)
    with pytest.raises(ConfigurationError, match="'hold' or 'reject'"):
        sensor(queue, unmatched="drop")
    with pytest.raises(ConfigurationError, match="no such part"):
        sensor(queue, match={"rooting_key": "x"}).execute(execute)
    hook.publish(queue, "x" * 1000)
    with pytest.raises(ConfigurationError, match="1,000 bytes and max_body_bytes is 999"):
        sensor(queue, max_body_bytes=999).execute(execute)
    with pytest.raises(ConfigurationError, match="which cannot be imported"):
        sensor(queue, match="tests.nowhere.f").execute(execute)
    with pytest.raises(ConfigurationError, match="failed with TypeError"):
        sensor(queue, match="tests.broker.test_sensor.is_paid").execute(execute)
    with pytest.raises(ConfigurationError, match=r"The first 1 messages of queue .* do not match"):
        sensor(queue, match={"type": "x"}, max_unmatched=1).execute(execute)
    # After all of that the message is still there.
    assert waiting(hook, queue, 1)
    with pytest.raises(TaskDeferred):
        sensor(queue, match={"type": "x"}, unmatched="reject").execute(execute)
    assert waiting(hook, queue, 0)
    assert hook.delete_queue(queue) == 0


# In the triggerer -----------------------------------------------------------------------------------------------------


class Airflow:
    """What the trigger asks of Airflow, answered: the state of the task, and its receipt."""

    def __init__(self, monkeypatch, state, receipt=None):
        self.state, self.receipt = state, receipt
        monkeypatch.setattr(module, "LOOK_INTERVAL", (0.05, 0.1))

        async def state_of(_key):
            return self.state

        async def receipt_of(_key):
            return self.receipt

        monkeypatch.setattr(module.TaskKey, "state", state_of)
        monkeypatch.setattr(module.TaskKey, "receipt", receipt_of)


async def fired(trigger):
    """Run a trigger as the triggerer does, until it has fired; its task and its event."""
    trigger.task_instance = TaskInstance()
    events: asyncio.Queue = asyncio.Queue()

    async def run():
        try:
            async for event in trigger.run():
                events.put_nowait(event.payload)
        except asyncio.CancelledError as error:
            if error.args and error.args[0] == USER_ACTION:
                await trigger.on_kill()
            raise
        finally:
            await trigger.cleanup()

    task = asyncio.ensure_future(run())
    event = await events.get()
    json.dumps(event, allow_nan=False)
    return task, event


async def cancelled(task, *message):
    task.cancel(*message)
    await asyncio.wait([task])
    await asyncio.gather(*module._under_way)


@pytest.mark.parametrize(
    ("message", "states", "receipt", "left"),
    [
        # Airflow has the event, and the task has run with it.
        ((USER_ACTION,), ["scheduled", "queued", "running", "success"], True, 0),
        # A person marked the task while the event was under way: nobody has the message.
        ((USER_ACTION,), ["success"], False, 1),
        ((USER_ACTION,), ["failed"], False, 1),
        # A person cleared it: a new try waits.
        ((USER_ACTION,), [None], False, 1),
        ((USER_ACTION,), ["queued", "running", "deferred"], False, 1),
        # The task failed after it had received the message: its retry receives it again.
        ((USER_ACTION,), ["running", "up_for_retry"], True, 1),
        # The triggerer shuts down.
        ((), ["deferred"], False, 1),
    ],
)
def test_a_message_is_acknowledged_only_when_the_task_has_it(  # noqa: PLR0917
    hook, queue, monkeypatch, message, states, receipt, left
):
    hook.publish(queue, "mine")
    hook.publish(queue, "another's")

    async def story():
        airflow = Airflow(monkeypatch, states[0])
        task, event = await fired(RabbitMQTrigger(queue_name=queue, rabbitmq_conn_id="sensor", confirm="receipt"))
        assert (event["status"], event["message"]["body"]) == ("message", "mine")
        # While it is held, others may take what follows.
        assert await asyncio.to_thread(waiting, hook, queue, 1)
        airflow.receipt = event["receipt"] if receipt else "of another"

        async def go_on():
            for state in states:
                airflow.state = state
                await asyncio.sleep(0.2)

        going = asyncio.ensure_future(go_on())
        await cancelled(task, *message)
        await going

    asyncio.run(story())
    assert waiting(hook, queue, 1 + left)
    assert hook.get(queue).body == (b"mine" if left else b"another's")


def test_a_trigger_cancelled_before_it_fires_gives_all_back(hook, queue):
    for _ in range(3):
        hook.publish(queue, "x")

    async def story():
        trigger = RabbitMQTrigger(queue_name=queue, rabbitmq_conn_id="sensor", match={"body": "y"})
        firing = asyncio.ensure_future(fired(trigger))
        assert await asyncio.to_thread(waiting, hook, queue, 0)
        for task in asyncio.all_tasks() - {asyncio.current_task(), firing}:
            if "fired.<locals>.run" in repr(task.get_coro()):
                await cancelled(task, USER_ACTION)
        firing.cancel()

    asyncio.run(story())
    assert waiting(hook, queue, 3)


def test_a_broker_restart_while_an_early_event_is_held_back(hook, broker, queue, monkeypatch):
    """The message goes back with the connection, and comes again: it is fired once."""
    hook.publish(queue, "x")
    monkeypatch.setattr("airflow_rabbitmq_spark.amqp.multiplexer.RETRY_DELAY", (0.1, 0.5))

    async def story():
        Airflow(monkeypatch, "success")
        # Longer than the command below takes on a busy machine.
        trigger = RabbitMQTrigger(queue_name=queue, rabbitmq_conn_id="sensor", fire_after=time.time() + 12)
        firing = asyncio.ensure_future(fired(trigger))
        assert await asyncio.to_thread(waiting, hook, queue, 0)
        await asyncio.to_thread(broker.close_connections, "a test")
        task, event = await firing
        assert event["message"]["redelivered"]
        await cancelled(task, USER_ACTION)

    asyncio.run(story())
    assert waiting(hook, queue, 0)
    assert hook.delete_queue(queue) == 0


def test_what_went_wrong_is_an_event(hook, queue, monkeypatch):
    async def story(name, **arguments):
        Airflow(monkeypatch, None)
        task, event = await fired(RabbitMQTrigger(queue_name=name, rabbitmq_conn_id="sensor", **arguments))
        await cancelled(task, USER_ACTION)
        return event

    hook.publish(queue, "x")
    resume = sensor(queue).resume
    event = asyncio.run(story(queue, match={"type": "y"}, end_by=time.time() + 1))
    assert event == {"status": "timeout", "passed_over": 1}
    with pytest.raises(AirflowSensorTimeout, match=r"within timeout=.*, and 1 that did not match\."):
        resume({"ti": TaskInstance()}, event, "timeout")
    event = asyncio.run(story("nowhere"))
    with pytest.raises(NotFound, match="nowhere"):
        resume({"ti": TaskInstance()}, event, "timeout")
    instance = TaskInstance()
    event = asyncio.run(story(queue))
    assert resume({"ti": instance}, event, "timeout")["body"] == "x"
    assert instance.xcoms == {RECEIPT_KEY: event["receipt"]}


def test_what_is_put_aside_is_not_held_for_ever(hook, queue, monkeypatch):
    """A broker closes the channel of who holds a message too long, and all other waits with it."""
    monkeypatch.setattr(module, "HOLD", 0.3)
    hook.publish(queue, "x")

    async def story():
        Airflow(monkeypatch, "success")
        trigger = RabbitMQTrigger(queue_name=queue, rabbitmq_conn_id="sensor", match={"body": "y"})
        firing = asyncio.ensure_future(fired(trigger))
        assert await asyncio.to_thread(waiting, hook, queue, 0)
        # Who consumes too gets it in between: the broker knows no other consumer at the moment at which it goes back.
        others = []
        assert await asyncio.to_thread(hook.consume, queue, others.append, max_messages=1, idle_timeout=15.0) == 1
        assert others[0].redelivered
        await asyncio.to_thread(hook.publish, queue, others[0].body)
        await asyncio.to_thread(hook.publish, queue, "y")
        task, event = await firing
        assert event["message"]["body"] == "y"
        await cancelled(task, USER_ACTION)

    asyncio.run(story())
    assert waiting(hook, queue, 1)
