"""Ends in the way that its first argument says."""

from __future__ import annotations

import sys

from airflow_rabbitmq_spark.job import open_job


def deep() -> None:
    raise LookupError("the cause, with \N{SNOWMAN}")


def fail() -> None:
    try:
        deep()
    except LookupError as error:
        raise RuntimeError("what the user sees") from error


with open_job() as job:
    job.progress(0.1, "about to end")
    match sys.argv[1]:
        case "exit":
            sys.exit(3)
        case "raise":
            fail()
        case "nothing":
            pass
        case "not-json":
            job.result({"a": object()})
        case "too-large":
            job.result("x" * 10_000)
        case "result":
            job.result(sys.argv[2:])
