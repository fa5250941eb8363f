"""A Spark master that takes any submission and plays the driver itself: no JVM, no machine behind it.

For what happens around a job and not in it: a thousand deferrals are a thousand JVMs otherwise.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pika

from airflow_rabbitmq_spark.amqp.publisher import Publisher
from airflow_rabbitmq_spark.job.events import CONTENT_TYPE, Event, Kind, encode
from airflow_rabbitmq_spark.job.handover import Handover

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from airflow_rabbitmq_spark.amqp.endpoint import Endpoint


class PretendSpark:
    """Listens for REST submissions; ``delay()`` seconds after one the job succeeds. A context manager."""

    def __init__(self, endpoint: Endpoint, delay: Callable[[], float]) -> None:
        self.submitted = 0
        self._endpoint, self._delay = endpoint, delay
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        accept = self._accept

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                content = json.dumps(accept(json.loads(body))).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_arguments: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = int(self._server.server_address[1])

    def _accept(self, request: dict[str, dict[str, str]]) -> dict[str, object]:
        handover = Handover.from_environment(request["environmentVariables"])
        if handover is not None:
            threading.Timer(self._delay(), self._play, [handover]).start()
        self.submitted += 1
        return {"success": True, "submissionId": f"driver-pretended-{next(self._numbers):04}"}

    def _play(self, handover: Handover) -> None:
        job = handover.job
        event = Event(
            Kind.SUCCEEDED, job.job_id, job.source, 1, {"result": time.time(), "has_result": True, "duration": 0.0}
        )
        properties = pika.BasicProperties(content_type=CONTENT_TYPE, message_id=event.id, delivery_mode=2)
        with self._lock:
            self._publisher.publish(job.exchange, job.routing_key(event.kind.value), encode(event), properties)

    def __enter__(self) -> PretendSpark:
        self._publisher = Publisher(self._endpoint)
        self._publisher.open()
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._publisher.close()

    def connection(self) -> str:
        """The Airflow connection, as JSON."""
        return json.dumps(
            {"conn_type": "spark", "host": "spark://127.0.0.1", "port": 7077, "extra": {"rest-port": self.port}}
        )
