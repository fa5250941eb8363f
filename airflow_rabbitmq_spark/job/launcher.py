"""Runs an application that knows nothing of this package inside a job session.

The bundle (``job.bundle``) is an executable zip whose ``__main__`` is this: ``python bundle.zip APPLICATION [ARG...]``.
The application sees the ``sys.argv``, ``sys.path[0]`` and ``__name__`` that it would have had by itself.
"""

from __future__ import annotations

import os
import runpy
import socket
import sys
import threading
from pathlib import Path

from airflow_rabbitmq_spark.exceptions import JobFailed
from airflow_rabbitmq_spark.job.session import JobSession, heed_sigint, open_job

#: Seconds between looks at whether the JVM that started this process is still its parent. One system call each.
PARENT_LOOK_INTERVAL = 1.0


def main(arguments: list[str] | None = None) -> None:
    """Run ``arguments[0]`` with the rest as its arguments, and report what becomes of it."""
    application, *rest = sys.argv[1:] if arguments is None else arguments
    with open_job() as job:
        path = Path(application)
        if not path.is_file():
            raise JobFailed(
                f"The application {application!r} does not exist on {socket.gethostname()}, where the driver runs "
                f"(working directory {Path.cwd()}). In cluster deploy mode the path is read there and not on "
                "Airflow's worker: put the file on every Spark worker under the same path, or on a shared volume."
            )
        watch_parent(job)
        sys.argv = [application, *rest]
        # The bundle stays importable, for processes that the application spawns.
        sys.path.append(sys.path[0])
        sys.path[0] = str(path.resolve().parent)
        runpy.run_path(str(path), run_name="__main__")


def watch_parent(job: JobSession) -> None:
    """Stop the application when the JVM that started it is gone.

    An orphaned driver could compute for hours and fail only when it next needs Spark. A process that no JVM started
    is left alone.
    """
    if "PYSPARK_GATEWAY_PORT" not in os.environ:
        return
    heed_sigint()
    parent = os.getppid()

    def watch() -> None:
        while not job.finished.wait(PARENT_LOOK_INTERVAL):
            if os.getppid() != parent:
                job.interrupt(
                    "The JVM of this Spark driver is gone: it was killed, ran out of memory, or its Spark worker ended."
                )
                return

    threading.Thread(target=watch, name="airflow-spark-jvm", daemon=True).start()


if __name__ == "__main__":
    main()
