"""The job protocol and the driver's side of it. ``open_job`` is what an application needs."""

from __future__ import annotations

from airflow_rabbitmq_spark.job.session import JobSession, open_job

__all__ = ["JobSession", "open_job"]
