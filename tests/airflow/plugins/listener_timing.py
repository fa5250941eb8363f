"""Writes down how long each call into the listener takes, in whatever process it happens: for test_listener.py."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from airflow.sdk.plugins_manager import AirflowPlugin

from airflow_rabbitmq_spark.listeners.listener import RabbitMQListener


class ListenerTiming(AirflowPlugin):
    name = "listener_timing"

    @classmethod
    def on_load(cls, *_args: Any, **_kwargs: Any) -> None:
        path = os.environ.get("LISTENER_TIMINGS")
        if path is None or hasattr(RabbitMQListener, "timed"):
            return
        RabbitMQListener.timed = True
        note = RabbitMQListener._note

        def timed(self: RabbitMQListener, make: Any, about: Any) -> None:
            began = time.perf_counter()
            note(self, make, about)
            took = time.perf_counter() - began
            with Path(path).open("a") as file:
                json.dump({"dag_id": about.dag_id, "about": type(about).__name__, "seconds": took}, file)
                file.write("\n")

        RabbitMQListener._note = timed
