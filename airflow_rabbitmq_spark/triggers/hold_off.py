"""How long a trigger must not fire after its task was deferred.

A push can be faster than Airflow's own bookkeeping. The supervisor of a task's process sees the process close its last
pipe, finds that it cannot be reaped just yet, and sleeps one ``[workers] min_heartbeat_interval`` before it looks again
(``airflow.sdk.execution_time.supervisor``, Airflow 3.3.2). Until then the executor holds the deferred task for running;
a task that is queued again meanwhile is failed by the scheduler with "finished with state success, but the task
instance's state attribute is queued". docs/waiting.md, "The early event", says what that costs.
"""

from __future__ import annotations

import time

#: Seconds beside the supervisor's sleep: for the executor to pass the end on, and for a round of the scheduler's loop.
MARGIN = 5.0
#: On a machine that is so busy that this process has lived for longer than a moment, those take longer too. Measured with 32
#: tasks at a time on two cores (benchmarks/early_event.py): 12 s where the process was 8 s old, which is 7 beside the
#: supervisor's sleep. Twice its age leaves room; and no more than this many seconds, for it may be old for other reasons.
TIMES_ITS_AGE, MOST = 2.0, 30.0
#: Airflow's default of ``[workers] min_heartbeat_interval``, in seconds.
DEFAULT_INTERVAL = 5


def process_seconds() -> float:
    """How long this process has run: the time that the task has held its worker slot."""
    import psutil

    return time.time() - float(psutil.Process().create_time())


def fire_after() -> float:
    """Seconds since the epoch before which a trigger that is deferred to now must not fire."""
    from airflow.configuration import conf

    interval = conf.getint("workers", "min_heartbeat_interval", fallback=DEFAULT_INTERVAL)
    return time.time() + interval + max(MARGIN, min(TIMES_ITS_AGE * process_seconds(), MOST))
