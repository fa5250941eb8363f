"""The process whose waits ``waits.py`` measures: real triggers on one event loop, run as Airflow's triggerer runs them.

    PYTHON benchmarks/waiters.py IMPLEMENTATION

It runs in the environment of the implementation, so it needs nothing but the standard library, Airflow and that.
On standard input it takes one JSON object a line: a job to wait for, ``{"start": true}`` to start the waits that were
named, ``{"keep": true}`` to let those that fire go on holding what they hold. On standard output it says ``started``
when the waits were started, and ``fired JOB_ID SECONDS`` (of the monotonic clock, which all processes of a machine share)
for each event.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

#: Seconds after which Airflow cancels a trigger whose event it has stored: it looks about once a second.
STORED_AFTER = 1.0

Job = dict[str, str]


class SleepTrigger(BaseTrigger):
    """Airflow's floor: a trigger that does nothing at all."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return f"{__name__}.SleepTrigger", {"seconds": self.seconds}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        await asyncio.sleep(self.seconds)
        yield TriggerEvent({})


def queue_of(job: Job) -> str:
    return f"{job['exchange']}.job.{job['job_id']}"


def sleeping() -> Callable[[Job], BaseTrigger]:
    return lambda _job: SleepTrigger(3600.0)


def ours() -> Callable[[Job], BaseTrigger]:
    from airflow_rabbitmq_spark.triggers.spark_job import SparkJobTrigger

    def make(job: Job) -> BaseTrigger:
        return SparkJobTrigger(
            rabbitmq_conn_id="rabbitmq_default",
            spark_conn_id="spark_default",
            job=job,
            rules={"start_by": time.time() + 3600, "lost_grace": 30.0, "end_by": None},
            submission_id=f"driver-20250101000000-{job['job_id'][:4]}",
        )

    return make


def rabbitmq() -> Callable[[Job], BaseTrigger]:
    from airflow.provider.rabbitmq.triggers.rabbitmq_trigger import RabbitMQTrigger

    # Passive: the queue has arguments that the trigger does not know, and exists.
    return lambda job: RabbitMQTrigger(queue_of(job), passive=True)


def rmq(mode: str) -> Callable[[], Callable[[Job], BaseTrigger]]:
    def load() -> Callable[[Job], BaseTrigger]:
        from airflow_provider_rmq.triggers.rmq import RMQTrigger

        return lambda job: RMQTrigger("rabbitmq_default", queue_of(job), mode=mode)

    return load


IMPLEMENTATIONS: dict[str, Callable[[], Callable[[Job], BaseTrigger]]] = {
    "sleep": sleeping,
    "ours": ours,
    "rabbitmq": rabbitmq,
    "rmq-push": rmq("push"),
    "rmq-pull": rmq("pull"),
}


class Waiters:
    """Starts triggers, says when they fire, and cancels them as Airflow does."""

    def __init__(self, make: Callable[[Job], BaseTrigger], say: Callable[[str], None]) -> None:
        self._make = make
        self._say = say
        self._named: list[Job] = []
        self._running: set[asyncio.Task[None]] = set()
        self._keep = False

    def obey(self, line: str) -> None:
        order = json.loads(line)
        if "job_id" in order:
            self._named.append(order)
        elif "start" in order:
            for job in self._named:
                task = asyncio.create_task(self._run(job))
                self._running.add(task)
                task.add_done_callback(self._running.discard)
            self._named = []
            # Behind the first step of every task.
            asyncio.get_running_loop().call_soon(self._say, "started")
        elif "keep" in order:
            self._keep = True

    async def _run(self, job: Job) -> None:
        trigger = self._make(job)
        try:
            async for event in trigger.run():
                at = time.monotonic()
                payload = event.payload
                failed = isinstance(payload, dict) and (
                    payload.get("status") == "error" or payload.get("verdict", "succeeded") != "succeeded"
                )
                if failed:
                    print(job["job_id"], payload, file=sys.stderr, flush=True)
                else:
                    self._say(f"fired {job['job_id']} {at:.6f}")
                task = asyncio.current_task()
                if task is not None and not self._keep:
                    asyncio.get_running_loop().call_later(STORED_AFTER, task.cancel)
        finally:
            with contextlib.suppress(Exception):
                await trigger.cleanup()


async def main() -> None:
    # What the triggers log must not get between the lines of the protocol.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(line: str) -> None:
        print(line, file=answers, flush=True)

    waiters = Waiters(IMPLEMENTATIONS[sys.argv[1]](), say)
    loop = asyncio.get_running_loop()
    over = asyncio.Event()

    def listen() -> None:
        for line in sys.stdin:
            loop.call_soon_threadsafe(waiters.obey, line)
        loop.call_soon_threadsafe(over.set)

    threading.Thread(target=listen, daemon=True).start()
    say("ready")
    await over.wait()
    answers.flush()
    # Nothing is to be taken down with care: who measures is done, and the broker ends next.
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(main())
