"""Runs that the listener tells of, or does not; test_listener.py reads what it says."""

from __future__ import annotations

from airflow.sdk import DAG, task
from airflow.sdk.exceptions import AirflowSkipException


def dag_of(dag_id: str) -> DAG:
    with DAG(dag_id, schedule=None, catchup=False) as dag:

        @task
        def first() -> str:
            return "done"

        @task
        def second(_given: str) -> None:
            raise AirflowSkipException("nothing to do")

        second(first())
    return dag


told = dag_of("listener_told")
#: Allowed by one glob and denied by another.
denied = dag_of("listener_denied")
#: Allowed by none.
unheard = dag_of("unheard")

with DAG("listener_fails", schedule=None, catchup=False) as fails:

    @task
    def wrong() -> None:
        raise ValueError("no such luck")

    wrong()
