"""A task's links, as Airflow's page gets them: while it is deferred, while it waits in the worker, and afterwards."""

from __future__ import annotations

import time

import pytest
import requests

DAG = "links"
TASKS = ("deferred", "in_worker")


def links(airflow, run, task_id):
    answer = airflow.api("GET", f"dags/{DAG}/dagRuns/{run}/taskInstances/{task_id}/links")
    return answer["extra_links"]


def is_known(found):
    """Whether the driver has reported, and Airflow has been told of both links that it gives: one after the other."""
    return found.get("Spark UI") and "appId=" in found.get("Spark master", "")


@pytest.fixture
def get():
    """The pages behind links; all of them are on loopback."""
    with requests.Session() as session:
        session.trust_env = False
        yield lambda url: session.get(url, timeout=120)


def test_links_lead_to_the_queue_the_driver_and_the_master(airflow_stack, broker, spark_cluster, tmp_path, get):
    go = tmp_path / "go"
    run = airflow_stack.trigger(DAG, go=str(go))
    found = {}
    deadline = time.monotonic() + 240
    while not all(is_known(found.get(task_id) or {}) for task_id in TASKS):
        assert airflow_stack.run_state(DAG, run) in {"queued", "running"}, airflow_stack.log(DAG, run, "deferred")
        assert time.monotonic() < deadline, f"{found}\n{airflow_stack.log(DAG, run, 'deferred')}"
        time.sleep(0.5)
        found = {task_id: links(airflow_stack, run, task_id) for task_id in TASKS}
    states = {task_id: airflow_stack.task(DAG, run, task_id)["state"] for task_id in TASKS}
    assert states == {"deferred": "deferred", "in_worker": "running"}

    queues = {queue for queue in broker.queues() if queue.startswith("airflow.spark.job.")}
    pages = {found[task_id]["RabbitMQ queue"] for task_id in TASKS}
    assert len(pages) == 2
    assert pages <= {f"https://page.example.com:15671/#/queues/%2F/{queue}" for queue in queues}
    applications = {}
    for task_id in TASKS:
        master = found[task_id]["Spark master"]
        assert master.startswith(f"{spark_cluster.web_url}/app/?appId=app-")
        applications[task_id] = master.partition("=")[2]
        assert applications[task_id] in get(master).text
        assert f"{DAG}.{task_id}" in get(f"{found[task_id]['Spark UI']}/environment/").text
    assert broker.password not in str(found)

    go.touch()
    assert airflow_stack.wait_for_run(DAG, run) == "success"
    for task_id in TASKS:
        assert airflow_stack.xcom(DAG, run, task_id) == applications[task_id]
        # What was known stays: the application's page at the master outlives the driver.
        assert links(airflow_stack, run, task_id) == found[task_id]
