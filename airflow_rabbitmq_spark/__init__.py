"""Run Spark applications from Airflow and be told by RabbitMQ what becomes of them."""

from __future__ import annotations

__version__ = "0.1.0"
