"""How long a trigger does not fire: longer where the task's process took long to get there."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from airflow_rabbitmq_spark.triggers import hold_off

FRESH = """
import time
{before}
from airflow_rabbitmq_spark.triggers.hold_off import fire_after, process_seconds
lived = process_seconds()
print(lived, fire_after() - time.time())
"""


@pytest.mark.parametrize("before", ["", "time.sleep(4)"], ids=["young", "old"])
def test_a_busy_machine_is_given_more_time(before):
    done = subprocess.run(
        [sys.executable, "-c", FRESH.format(before=before)], capture_output=True, text=True, check=True
    )
    lived, held = map(float, done.stdout.split()[-2:])
    least = hold_off.DEFAULT_INTERVAL + max(hold_off.MARGIN, hold_off.TIMES_ITS_AGE * lived)
    assert least - 0.1 <= held <= hold_off.DEFAULT_INTERVAL + hold_off.MOST


def test_a_process_that_is_old_for_other_reasons_does_not_wait_for_ever(monkeypatch):
    monkeypatch.setattr(hold_off, "process_seconds", lambda: 3600.0)
    assert hold_off.fire_after() - time.time() <= hold_off.DEFAULT_INTERVAL + hold_off.MOST
