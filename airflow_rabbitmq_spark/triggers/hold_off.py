"""How long a trigger must not fire after its task was deferred.

A push can be faster than Airflow's own bookkeeping. The supervisor of a task's process sees the process close its last
pipe, finds that it cannot be reaped just yet, and sleeps one ``[workers] min_heartbeat_interval`` before it looks again
(``airflow.sdk.execution_time.supervisor``, Airflow 3.3.2). Until then the executor holds the deferred task for running;
a task that is queued again meanwhile is failed by the scheduler with "finished with state success, but the task
instance's state attribute is queued". docs/waiting.md, "The early event", says what that costs.
"""

from __future__ import annotations

import time

#: Seconds beside the supervisor's sleep: for the executor to pass the end on, and the scheduler to read it, on a machine
#: that is busy. benchmarks/early_event.py shows that it is enough.
MARGIN = 5.0
#: Airflow's default of ``[workers] min_heartbeat_interval``, in seconds.
DEFAULT_INTERVAL = 5


def fire_after() -> float:
    """Seconds since the epoch before which a trigger that is deferred to now must not fire."""
    from airflow.configuration import conf

    return time.time() + conf.getint("workers", "min_heartbeat_interval", fallback=DEFAULT_INTERVAL) + MARGIN
