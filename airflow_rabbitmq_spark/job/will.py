"""The last will: what the broker says about a driver that can no longer speak.

AMQP has none; this makes one from parts that every RabbitMQ has. The will queue's messages live for 0 ms and are then
dead-lettered to the job's exchange as ``lost``. A message that meets a waiting consumer is handed over before it can
expire: the driver consumes the queue, publishes the finished ``lost`` event to it, receives it, and never
acknowledges it. When the driver's connection dies the broker puts the message back, finds it expired, and tells
everybody who listens. Measured: 4 to 11 ms after SIGKILL (benchmarks/lost.py measures it again).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pika

from airflow_rabbitmq_spark.exceptions import ConnectionLost
from airflow_rabbitmq_spark.job.events import CONTENT_TYPE, Event, Kind, encode

if TYPE_CHECKING:
    from airflow_rabbitmq_spark.amqp.connection import Channel, Message
    from airflow_rabbitmq_spark.job.topology import Job

#: Seconds for a will that was published to come back, not counting those in which an alarm blocks publishers. It only
#: has to cross the broker once.
LAY_TIMEOUT = 30.0
#: Seconds between looks at whether an alarm blocks it.
LOOK_INTERVAL = 0.5


class Will:
    """The last will of one driver on one channel. Lay it, renew it, and release it at a clean end."""

    def __init__(self, job: Job, channel: Channel, *, host: str) -> None:
        self._job = job
        self._channel = channel
        self._host = host
        self._held: int | None = None
        self._expected: str | None = None
        self._arrived: asyncio.Future[int] | None = None
        #: Set when the broker ends the claim: the queue was deleted, or its node went down.
        self.revoked = asyncio.Event()

    async def claim(self) -> None:
        """Become the only driver of the job.

        :raises AccessRefused: another connection holds the job: a second driver, or this one's own old connection,
            which the broker has not yet given up.
        :raises NotFound: the job was given up, or the node that holds the will is down.
        """
        await self._channel.prefetch(0)
        await self._channel.consume(
            self._job.will_queue, self._on_message, exclusive=True, on_cancelled=lambda _tag: self.revoked.set()
        )

    async def lay(self) -> None:
        """Publish the next will, hold it, and only then let go of the one before.

        :raises ConnectionLost: it did not come back; the connection is of no use.
        """
        event = Event(
            kind=Kind.LOST,
            subject=self._job.job_id,
            source=self._job.source,
            data={
                "host": self._host,
                "text": "The driver's connection to the broker ended and it had not said that it was done.",
            },
        )
        self._arrived = asyncio.get_running_loop().create_future()
        self._expected = event.id
        published = self._channel.send(
            "",
            self._job.will_queue,
            encode(event),
            pika.BasicProperties(
                content_type=CONTENT_TYPE,
                message_id=event.id,
                correlation_id=self._job.job_id,
                type=event.kind.value,
                delivery_mode=2,
            ),
        )
        # A will that is on its way may be confirmed late or, while publishers are blocked, after minutes.
        published.add_done_callback(lambda future: future.cancelled() or future.exception())
        waiting: list[asyncio.Future[Any]] = [self._arrived, self._channel.closed]
        waited = 0.0
        while not self._arrived.done():
            await asyncio.wait(waiting, timeout=LOOK_INTERVAL, return_when=asyncio.FIRST_COMPLETED)
            if self._channel.closed.done():
                raise self._channel.closed.result()
            # The broker says that it blocks us only when it has read the beginning of what we published, and reads on when
            # the alarm is over. To give up meanwhile would make a `lost` of a driver that lives.
            waited = 0.0 if self._channel.connection.blocked else waited + LOOK_INTERVAL
            if waited > LAY_TIMEOUT:
                raise ConnectionLost(f"The last will did not come back from the broker within {LAY_TIMEOUT:g} s.")
        if self._held is not None:
            self._channel.ack(self._held)
        self._held = self._arrived.result()

    async def release(self) -> None:
        """A clean end: let go of the will so that nobody hears of it, and leave no place for another driver.

        With the queue gone, a driver of the same job that starts late finds that it was superseded.
        """
        if self._held is not None:
            self._channel.ack(self._held)
            self._held = None
        await self._channel.delete_queue(self._job.will_queue)

    def _on_message(self, message: Message) -> None:
        if message.properties.message_id == self._expected and self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(message.tag)
        else:
            # Somebody else's message in this queue is no will of ours.
            self._channel.ack(message.tag)
