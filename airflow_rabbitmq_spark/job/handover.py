"""What Airflow hands to the driver: which job it is, where the broker is, and how to behave.

It travels in one environment variable. Its name matches Spark's own redaction pattern
(``spark.redaction.regex``: ``secret|password|token|access[.]?key|credential``), because on YARN and Kubernetes a
variable for the driver is a Spark property that the web UI shows. It is never an argument: those anybody can list.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from airflow_rabbitmq_spark.amqp.endpoint import Endpoint
from airflow_rabbitmq_spark.exceptions import ConfigurationError
from airflow_rabbitmq_spark.job.events import MAX_RESULT_BYTES
from airflow_rabbitmq_spark.job.topology import Job

if TYPE_CHECKING:
    from collections.abc import Mapping

VARIABLE = "AIRFLOW_SPARK_JOB_CREDENTIAL"


@dataclass(frozen=True)
class Settings:
    """How a session behaves.

    :param delivery_timeout: seconds a finished application waits at its end for a broker that is away, before it
        gives up on its last word and says so.
    :param will_renewal: seconds a last will is held before the next one replaces it. It must stay well below the
        broker's delivery timeout: 30 minutes by default, checked once a minute
        (https://www.rabbitmq.com/docs/consumers#acknowledgement-timeout).
    :param max_result_bytes: the largest result, as JSON.
    """

    delivery_timeout: float = 300.0
    will_renewal: float = 600.0
    max_result_bytes: int = MAX_RESULT_BYTES


@dataclass(frozen=True)
class Handover:
    """All that a driver needs to know to report."""

    job: Job
    endpoint: Endpoint = field(repr=False)
    settings: Settings = field(default_factory=Settings)
    traceparent: str | None = None

    def to_environment(self) -> dict[str, str]:
        """The one variable to set for the driver.

        Base64, because Spark 4 reads ``{{NAME}}`` in the values it is sent as the master's own variables.
        """
        document = {
            "job": self.job.to_json(),
            "endpoint": self.endpoint.to_mapping(),
            "settings": asdict(self.settings),
            "traceparent": self.traceparent,
        }
        return {VARIABLE: base64.b64encode(json.dumps(document).encode()).decode()}

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Handover | None:
        """What Airflow handed over, or None outside Airflow.

        :raises ConfigurationError: the variable is there and cannot be read.
        """
        text = (os.environ if environment is None else environment).get(VARIABLE)
        if not text:
            return None
        try:
            document: dict[str, Any] = json.loads(base64.b64decode(text, validate=True))
            known = {entry.name for entry in fields(Settings)}
            # A newer operator may send settings that this, older, bundle does not know.
            settings = {name: value for name, value in document["settings"].items() if name in known}
            return cls(
                job=Job.from_json(document["job"]),
                endpoint=Endpoint.from_mapping(document["endpoint"]),
                settings=Settings(**settings),
                traceparent=document.get("traceparent"),
            )
        except (binascii.Error, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigurationError(
                f"The environment variable {VARIABLE} cannot be read ({type(error).__name__}). Airflow's "
                "SparkJobOperator sets it; unset it to run this application by hand."
            ) from None
