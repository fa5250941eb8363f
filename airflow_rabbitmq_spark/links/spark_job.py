"""Buttons on a ``SparkJobOperator`` task: its queue at the broker, the driver's Spark UI, the Spark master.

Airflow's page reads a link's address from an XCom of the task. Airflow itself fills it by :meth:`get_link`, in the
worker, each time the task leaves it: so the queue and the master are there as soon as the task is deferred. The Spark
UI's address is known only when the driver reports, so the trigger stores it while the task is deferred.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow.sdk import BaseOperatorLink

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow.sdk import BaseOperator
    from airflow.sdk.types import TaskInstanceKey

    from airflow_rabbitmq_spark.amqp.endpoint import Endpoint
    from airflow_rabbitmq_spark.job.topology import Job

log = logging.getLogger(__name__)


class JobLink(BaseOperatorLink):
    """A link whose address the operator or the trigger has found out; empty until then."""

    name = ""

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """The address, for Airflow to store; what is stored already stays."""
        known: Mapping[str, str] = getattr(operator, "links", {})
        return known.get(self.xcom_key) or _stored(ti_key, self.xcom_key)


class RabbitMQQueueLink(JobLink):
    """The job's queue on the broker's management page, where the connection says its address (`management_url`)."""

    name = "RabbitMQ queue"


class SparkUILink(JobLink):
    """The Spark UI of the driver. It lives as long as the driver does."""

    name = "Spark UI"


class SparkMasterLink(JobLink):
    """The master's page; the application's page there, once the driver has said which one it is."""

    name = "Spark master"


QUEUE, UI, MASTER = LINKS = (RabbitMQQueueLink(), SparkUILink(), SparkMasterLink())


def queue_address(endpoint: Endpoint, queue: str) -> str:
    """The page of a queue; empty where the connection does not say where the management page is."""
    if not endpoint.management_url:
        return ""
    return f"{endpoint.management_url}/#/queues/{quote(endpoint.virtual_host, safe='')}/{quote(queue, safe='')}"


def at_submission(endpoint: Endpoint, job: Job, master_page: str) -> dict[str, str]:
    """The links that are known once the job is submitted, by XCom key."""
    return {QUEUE.xcom_key: queue_address(endpoint, job.job_queue), MASTER.xcom_key: master_page}


def at_start(data: Mapping[str, Any], master_page: str) -> dict[str, str]:
    """The links that a driver's ``started`` event tells, by XCom key; none where it has no SparkContext yet.

    :param data: the event's; anybody may have sent it, so nothing but a web address becomes a link.
    """
    links = {}
    if ui := web_address(data.get("ui")):
        links[UI.xcom_key] = ui
    if master_page and (application := data.get("application_id")):
        links[MASTER.xcom_key] = f"{master_page}/app/?appId={quote(str(application)[:200], safe='')}"
    return links


def web_address(value: object) -> str:
    """``value`` where it is an ``http`` or ``https`` address without user and password; empty where it is not."""
    from airflow_rabbitmq_spark.amqp.options import OptionError, http_address

    try:
        return http_address(value) if isinstance(value, str) and len(value) <= 2000 else ""
    except OptionError:
        return ""


def store(instance: Any, links: Mapping[str, str]) -> None:
    """Store links from the worker while the task runs. A failure is only logged: a link is no reason to fail.

    :param instance: the task instance.
    """
    from airflow.sdk.bases.xcom import BaseXCom

    try:
        for key, address in links.items():
            BaseXCom.set(key, address, **_whose(instance))
    except Exception as error:  # noqa: BLE001 - whatever Airflow's API says
        log.warning("The task's links could not be stored: %s", error)


async def store_from_trigger(instance: Any, links: Mapping[str, str]) -> None:
    """As :func:`store`, from the triggerer's event loop."""
    from airflow.sdk.bases.xcom import BaseXCom

    try:
        for key, address in links.items():
            await BaseXCom.aset(key, address, **_whose(instance))
    except Exception as error:  # noqa: BLE001 - likewise
        log.warning("The task's links could not be stored: %s", error)


def _stored(instance: Any, key: str) -> str:
    # Past any XCom backend of the user's: Airflow stores and reads links so.
    from airflow.sdk.bases.xcom import BaseXCom

    value = BaseXCom.get_value(ti_key=instance, key=key)
    return value if isinstance(value, str) else ""


def _whose(instance: Any) -> dict[str, Any]:
    return {
        "dag_id": instance.dag_id,
        "task_id": instance.task_id,
        "run_id": instance.run_id,
        "map_index": instance.map_index,
    }
