"""Names on the broker, and the arguments of queues."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_rabbitmq_spark.job.events import Kind
from airflow_rabbitmq_spark.job.topology import (
    MAX_ROUTING_KEY,
    Job,
    job_queue_arguments,
    refused_exchange,
    will_queue_arguments,
    word,
)

#: Airflow allows 250 characters for each id, and any of them where a DAG is made by code of one's own.
IDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=250)


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("train", "train"),
        ("a-b_c~9", "a-b_c~9"),
        ("group.task", "group%2Etask"),
        ("*", "%2A"),
        ("#", "%23"),
        ("100%", "100%25"),
        ("mit Ümlaut", "mit%20%C3%9Cmlaut"),
        ("", "~"),
    ],
)
def test_a_word(text, escaped):
    assert word(text) == escaped


def test_long_words_are_cut_and_stay_two():
    one, other = word("a" * 249 + "1"), word("a" * 249 + "2")
    assert one != other
    assert one[:80] == other[:80]
    assert word("ä" * 250) != word("ä" * 249)


@given(IDS, IDS)
def test_every_routing_key_is_four_words_that_fit(dag_id, task_id):
    job = Job.new(dag_id, task_id)
    for kind in Kind:
        key = job.routing_key(kind.value)
        assert len(key.encode()) <= MAX_ROUTING_KEY
        assert re.fullmatch(r"[A-Za-z0-9_\-~%]+\.[A-Za-z0-9_\-~%]+\.[0-9a-f]{32}\.[a-z]+", key)


@given(IDS, IDS)
def test_two_ids_are_two_words(one, other):
    assert (word(one) == word(other)) == (one == other or {one, other} == {"", "~"})


def test_the_names_of_a_job():
    job = Job("dag.one", "task two", "0" * 32, "my.exchange")
    assert job.source == "/airflow/dag%2Eone/task%20two"
    assert job.job_queue == f"my.exchange.job.{'0' * 32}"
    assert job.will_queue == f"my.exchange.will.{'0' * 32}"
    assert job.control_queue == f"my.exchange.control.{'0' * 32}"
    assert job.routing_key("lost") == f"dag%2Eone.task%20two.{'0' * 32}.lost"
    assert job.binding_key == f"*.*.{'0' * 32}.*"
    assert refused_exchange(job.exchange) == "my.exchange.refused"
    assert Job.from_json(job.to_json()) == job


def test_each_job_has_an_id_of_its_own():
    ids = {Job.new("d", "t").job_id for _ in range(100)}
    assert len(ids) == 100
    assert all(re.fullmatch("[0-9a-f]{32}", job_id) for job_id in ids)


@pytest.mark.parametrize(
    ("queue_type", "version", "limit"),
    [
        ("classic", (3, 10, 8), None),
        ("classic", (4, 0, 5), None),
        ("quorum", (3, 10, 8), None),
        ("quorum", (3, 13, 7), None),
        ("quorum", (4, 0, 0), -1),
        ("quorum", (4, 3), -1),
    ],
)
def test_the_job_queues_arguments(queue_type, version, limit):
    arguments = job_queue_arguments("e", queue_type=queue_type, retention=1.5, server_version=version)
    assert arguments.pop("x-delivery-limit", None) == limit
    assert arguments == {"x-expires": 1500, "x-dead-letter-exchange": "e.refused", "x-queue-type": queue_type}


def test_the_will_queues_arguments():
    job = Job("d", "t", "0" * 32)
    assert will_queue_arguments(job, retention=60) == {
        "x-expires": 60_000,
        "x-message-ttl": 0,
        "x-dead-letter-exchange": "airflow.spark",
        "x-dead-letter-routing-key": job.routing_key("lost"),
        "x-queue-type": "classic",
    }
