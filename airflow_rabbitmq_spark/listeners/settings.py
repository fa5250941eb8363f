"""The section ``[rabbitmq_listener]`` of Airflow's configuration. ``provider_info.py`` describes it for Airflow."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from airflow_rabbitmq_spark.exceptions import ConfigurationError
from airflow_rabbitmq_spark.listeners.plugin import SECTION


@dataclass(frozen=True)
class Settings:
    """What is published, and where to.

    :param dag_allow: globs of DAG ids; one must match.
    :param dag_deny: globs of DAG ids; none may match.
    :param queue_size: events that a process keeps while the broker is away.
    :param flush_timeout: seconds that a process waits at its end for the broker to take what is left.
    """

    rabbitmq_conn_id: str = "rabbitmq_default"
    exchange: str = "airflow.events"
    dag_allow: tuple[str, ...] = ("*",)
    dag_deny: tuple[str, ...] = ()
    dag_run_events: bool = True
    task_instance_events: bool = True
    queue_size: int = 1000
    flush_timeout: float = 2.0

    @classmethod
    def read(cls, conf: Any) -> Settings:
        """From Airflow's configuration.

        :raises ConfigurationError: an option is wrong; says which.
        """
        default = cls()
        settings = cls(
            rabbitmq_conn_id=conf.get(SECTION, "rabbitmq_conn_id", fallback=default.rabbitmq_conn_id).strip(),
            exchange=conf.get(SECTION, "exchange", fallback=default.exchange).strip(),
            dag_allow=_globs(conf.get(SECTION, "dag_allow", fallback=",".join(default.dag_allow))),
            dag_deny=_globs(conf.get(SECTION, "dag_deny", fallback="")),
            dag_run_events=conf.getboolean(SECTION, "dag_run_events", fallback=default.dag_run_events),
            task_instance_events=conf.getboolean(
                SECTION, "task_instance_events", fallback=default.task_instance_events
            ),
            queue_size=conf.getint(SECTION, "queue_size", fallback=default.queue_size),
            flush_timeout=conf.getfloat(SECTION, "flush_timeout", fallback=default.flush_timeout),
        )
        for option, problem in (
            ("rabbitmq_conn_id", "" if settings.rabbitmq_conn_id else "is empty; name a connection of type RabbitMQ"),
            ("exchange", "" if settings.exchange else "is empty; name a topic exchange, such as airflow.events"),
            ("queue_size", "" if 1 <= settings.queue_size <= 1_000_000 else "must be from 1 to 1000000"),
            ("flush_timeout", "" if 0 <= settings.flush_timeout <= 60 else "must be from 0 to 60 seconds"),
        ):
            if problem:
                raise ConfigurationError(f"[{SECTION}] {option} {problem}.")
        return settings

    def wants(self, dag_id: str) -> bool:
        """Whether events of this DAG are published."""
        return any(fnmatchcase(dag_id, glob) for glob in self.dag_allow) and not any(
            fnmatchcase(dag_id, glob) for glob in self.dag_deny
        )


def _globs(text: str) -> tuple[str, ...]:
    return tuple(glob for part in text.split(",") if (glob := part.strip()))
