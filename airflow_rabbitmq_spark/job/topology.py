"""Names: the exchange, the queues and the routing keys of a job. No I/O.

A *job* is one run of a Spark application on behalf of one try of one task instance.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from dataclasses import dataclass
from typing import Any

#: An AMQP short string holds 255 bytes (AMQP 0-9-1, 4.2.5.3), and a routing key is one.
MAX_ROUTING_KEY = 255
#: What is left of it for each of dag_id and task_id after a 32-digit job id, the longest kind and three dots.
MAX_WORD = (MAX_ROUTING_KEY - 32 - len("succeeded") - 3) // 2

_UNSAFE = re.compile(r"[^A-Za-z0-9_\-~]")


def word(text: str) -> str:
    """One word of a routing key: what a topic exchange reads as syntax (``.``, ``*``, ``#``) is percent-encoded.

    An empty text becomes ``~``. One that would not fit is cut, and ends in a digest of the whole so that two that
    are cut stay two.
    """
    escaped = _UNSAFE.sub(lambda match: "".join(f"%{byte:02X}" for byte in match.group().encode()), text) or "~"
    if len(escaped) <= MAX_WORD:
        return escaped
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return f"{escaped[: MAX_WORD - 17]}~{digest}"


@dataclass(frozen=True)
class Job:
    """Who a job is, and from that where its events go.

    :param job_id: 32 hexadecimal digits, chosen before the application is submitted.
    :param exchange: the topic exchange for events; also the first part of the job's queue names.
    """

    dag_id: str
    task_id: str
    job_id: str
    exchange: str = "airflow.spark"

    @classmethod
    def new(cls, dag_id: str, task_id: str, exchange: str = "airflow.spark") -> Job:
        """A job with an id of its own."""
        return cls(dag_id, task_id, uuid.uuid4().hex, exchange)

    @property
    def source(self) -> str:
        """The CloudEvents ``source`` of the job's events: a URI path."""
        return f"/airflow/{word(self.dag_id)}/{word(self.task_id)}"

    @property
    def job_queue(self) -> str:
        """Gets a copy of every event of the job; Airflow consumes it."""
        return f"{self.exchange}.job.{self.job_id}"

    @property
    def will_queue(self) -> str:
        """Holds the last will; the driver consumes it, exclusively."""
        return f"{self.exchange}.will.{self.job_id}"

    @property
    def control_queue(self) -> str:
        """The driver's own, for as long as its connection lives."""
        return f"{self.exchange}.control.{self.job_id}"

    @property
    def binding_key(self) -> str:
        """Every event of the job, whatever its kind."""
        return f"*.*.{self.job_id}.*"

    def routing_key(self, kind: str) -> str:
        """Where an event of ``kind`` goes: ``<dag_id>.<task_id>.<job_id>.<kind>``."""
        return f"{word(self.dag_id)}.{word(self.task_id)}.{self.job_id}.{kind}"

    def to_json(self) -> dict[str, str]:
        """The job as JSON; :meth:`from_json` reads it."""
        return {
            "dag_id": self.dag_id,
            "task_id": self.task_id,
            "job_id": self.job_id,
            "exchange": self.exchange,
        }

    @classmethod
    def from_json(cls, data: dict[str, str]) -> Job:
        """The inverse of :meth:`to_json`."""
        return cls(data["dag_id"], data["task_id"], data["job_id"], data["exchange"])


def refused_exchange(exchange: str) -> str:
    """Where job queues dead-letter what nobody could read; a fanout exchange, and the name of its one queue."""
    return f"{exchange}.refused"


#: What the queue of refused messages holds, at most: a person looks at the newest, and nobody fills a disk with it.
REFUSED_ARGUMENTS: dict[str, Any] = {
    "x-max-length": 10_000,
    "x-max-length-bytes": 256 * 2**20,
    "x-message-ttl": 7 * 24 * 3600 * 1000,
}


def job_queue_arguments(
    exchange: str, *, queue_type: str, retention: float, server_version: tuple[int, ...]
) -> dict[str, Any]:
    """Arguments of a job's queue.

    :param queue_type: ``classic`` or ``quorum``.
    :param retention: seconds the queue lives without a consumer before it expires.
    :param server_version: decides how a quorum queue's delivery limit is turned off.
    """
    arguments: dict[str, Any] = {
        "x-expires": int(retention * 1000),
        "x-dead-letter-exchange": refused_exchange(exchange),
        "x-queue-type": queue_type,
    }
    if queue_type == "quorum" and server_version >= (4, 0):
        # From 4.0 on the limit is 20 where none is set, and a peek that goes back counts as a delivery; before, there
        # is none and a negative one is refused (https://www.rabbitmq.com/docs/quorum-queues#poison-message-handling).
        arguments["x-delivery-limit"] = -1
    return arguments


def will_queue_arguments(job: Job, *, retention: float) -> dict[str, Any]:
    """Arguments of a job's will queue: what is not held by the driver at once is said to everybody as ``lost``.

    Always classic: a quorum queue does not know the exclusive consumer.
    """
    return {
        "x-expires": int(retention * 1000),
        "x-message-ttl": 0,
        "x-dead-letter-exchange": job.exchange,
        "x-dead-letter-routing-key": job.routing_key("lost"),
        "x-queue-type": "classic",
    }
