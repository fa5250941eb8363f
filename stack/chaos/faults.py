"""The table of faults. Each starts the round's job, hits something at its moment, and says what must come of it.

Where nothing else is said the task must succeed in its first try, with one driver that ran to its end.
"""

from __future__ import annotations

import base64
import contextlib
import json
import signal
import time
from functools import partial
from typing import TYPE_CHECKING

from airflow_rabbitmq_spark.job.handover import VARIABLE
from stack.chaos.parts import Gate, executable, send
from stack.chaos.round import READ_LINE, Expected, Held, Missed, Round

if TYPE_CHECKING:
    from collections.abc import Callable

    from stack.processes import Process

#: Of tests/chaos/dags/chaos.py, in seconds and tries.
LOST_GRACE, RETRIES = 30.0, 8
#: Every try may be used.
ANY_TRIES = (1, RETRIES + 1)
#: Seconds until a driver that may connect again has done so: the longest pause between two attempts (job/link.py), and
#: what it takes on a busy machine.
BACK_WITHIN = 20.0
#: Seconds after which the broker and a client each give up a peer that is silent: between one and two heartbeats of 10 s.
SILENCE = 10.0
#: A driver that is cut off for longer may be taken for dead: `lost_grace` is over before it is back. Then Airflow is
#: right to run the application again, and the first run may come to its end too.
PRESUMED_DEAD = LOST_GRACE - BACK_WITHIN
MAYBE_TWICE = (1, 2)


def presumed_dead(r: Round, away: float) -> None:
    """Widen what is expected where a driver was away for so long that it may be taken for dead."""
    if away > PRESUMED_DEAD:
        r.expected.ends, r.expected.tries = MAYBE_TWICE, ANY_TRIES


# The triggerer -------------------------------------------------------------------------------------------------------


def waiting(r: Round) -> Process:
    """The triggerer that waits for the round's task."""
    return r.wait(lambda: r.stack.waiting_triggerer(r.log_folder), "triggerer that waits", every=0.1)


def triggerer_killed(r: Round, moment: str, *, both: bool = False) -> None:
    """SIGKILL the triggerer that waits; with ``both`` the other too, and a new one comes after a while."""
    # A trigger fires 10 s after the deferral at the earliest (triggers/hold_off.py).
    r.start(r.uniform(2, 6) if moment == "before its event is stored" else r.uniform(14, 20))
    r.until_deferred()
    victims = list(r.stack.triggerers) if both else [waiting(r)]
    if moment == "before the end":
        time.sleep(r.uniform(0, 8))
    elif moment == "at the end":
        r.until("end")
        time.sleep(r.uniform(0, 0.1))
    elif moment == "just after the end":
        r.until("end")
        time.sleep(r.uniform(0.1, 3))
    else:
        r.until("end")
        time.sleep(max(0.0, r.deferred_at + 10 - time.time() + r.uniform(-0.5, 1.5)))
    for victim in victims:
        r.stack.kill(victim)
    r.say(f"killed {[victim.name for victim in victims]}")
    if both:
        time.sleep(r.uniform(0, 15))
        victims[0].start()


def triggerer_frozen(r: Round, moment: str) -> None:
    """SIGSTOP the triggerer that waits for longer than its health threshold (10 s); the other takes over."""
    long = moment == "through the end"
    r.start(r.uniform(8, 14) if long else r.uniform(45, 60))
    r.until_deferred()
    victim = waiting(r)
    r.until("begin")
    r.stack.freeze(victim)
    r.say(f"froze {victim.name}")
    if long:
        r.until("end")
    time.sleep(r.uniform(18, 25))
    r.stack.thaw(victim)
    r.say("thawed it")


# The worker ----------------------------------------------------------------------------------------------------------


def worker_killed_before_submit(r: Round) -> None:
    """While it imports, connects and declares."""
    r.expected = Expected(tries=(1, 2))
    r.start(5)
    r.until("worker")
    time.sleep(r.uniform(0, 4))
    r.kill_worker()


def worker_killed_submitting(r: Round, then: str) -> None:
    """While its submission is on the way, which is then lost, arrives late, or was taken and not answered."""
    r.expected = Expected(tries=(2, 2))
    # The next try begins after 12 s: the driver still runs then, or has ended.
    seconds = {"the driver still runs": r.uniform(30, 40), "the driver has ended": r.uniform(1, 2)}.get(then, 5)
    taken = then in ("the driver still runs", "the driver has ended")
    with Held(r, answer=taken) as gate:
        r.start(seconds)
        gate.wait()
        r.kill_worker()
        if then == "it arrives late":
            # In the next try, before or after that has given the job up.
            time.sleep(r.uniform(0, 30))
        gate.release(passes=then != "it is lost")


def answer_lost(r: Round) -> None:
    """The master took the submission, and the connection breaks before its answer."""
    r.expected = Expected(tries=(1, 2))
    with Held(r, answer=True) as gate:
        r.start(5)
        gate.wait()
        gate.release(passes=False)
        r.say("reset the connection in place of the answer")


def worker_killed_deferring(r: Round) -> None:
    """Between the answer of the master and the deferral."""
    r.expected = Expected(tries=(1, 2))
    r.start(r.uniform(3, 25))
    r.wait(lambda: "Submitted " in r.log(), "submission", every=0.01)
    time.sleep(r.uniform(0, 0.3))
    r.kill_worker()


def worker_killed_resuming(r: Round, moment: str) -> None:
    """Before or after it has read the result, or while it cleans up."""
    r.expected = Expected(tries=(1, 2))
    r.start(r.uniform(3, 10))
    r.until_resuming()
    if moment == "before reading":
        time.sleep(r.uniform(0, 1.5))
    else:
        r.wait(lambda: READ_LINE in r.log(), "result", every=0.005)
        time.sleep(r.uniform(0, 0.1) if moment == "after reading" else r.uniform(0.1, 1))
    # It may be through already.
    with contextlib.suppress(Missed):
        r.kill_worker()
    r.expected.queues_may_stay = READ_LINE in r.log()


# The driver ----------------------------------------------------------------------------------------------------------


def driver_killed(r: Round, what: str, stage: str) -> None:
    """SIGKILL of the driver's Python, its JVM, or the Spark worker."""
    r.expected = Expected(tries=(2, 2))
    r.start(r.uniform(6, 12))
    r.until("jvm" if what == "JVM" and stage == "start" else "python" if stage == "start" else stage)
    time.sleep(r.uniform(0, 1.5) if stage == "start" else r.uniform(0, 0.15) if stage == "end" else 0)
    if stage == "end":
        # Between its end and its word nobody can know of its end; and it may have been quick enough.
        r.expected.ends, r.expected.tries = MAYBE_TWICE, (1, 2)
    if what == "Python":
        send(r.drivers(), signal.SIGKILL)
    elif what == "JVM":
        send(r.jvms(), signal.SIGKILL)
    else:
        # Not the shell that starts it again, which has the same words in its command line.
        workers = r.stack.spark.worker.pids(containing="deploy.worker.Worker")
        send([pid for pid in workers if executable(pid) == "java"], signal.SIGKILL)
    r.say(f"killed the {what}")


def driver_frozen(r: Round, stage: str, *, long: bool) -> None:
    """SIGSTOP of the driver's Python: briefly, or until it is taken for dead; then SIGCONT."""
    r.start(r.uniform(8, 14))
    r.until("python" if stage == "start" else stage)
    pids = r.drivers()
    send(pids, signal.SIGSTOP)
    away = 2 * SILENCE + LOST_GRACE + r.uniform(10, 20) if long else r.uniform(3, 9)
    r.say(f"froze the driver for {away:.1f} s")
    if long:
        presumed_dead(r, away)
    time.sleep(away)
    send(pids, signal.SIGCONT)


# The broker ----------------------------------------------------------------------------------------------------------


def broker_fault(r: Round, how: str, stage: str) -> None:
    """Restart, SIGKILL, or away for long, at a stage of the job."""
    # A try that needs the broker and finds none fails, and Airflow tries again. While deferred nothing needs a try.
    r.expected = Expected(tries=(1, 1) if stage in ("middle", "start") else ANY_TRIES)
    r.expected.queues_may_stay = stage == "resume"
    r.seconds = r.uniform(6, 14)
    with r.at(stage):
        if how == "restart" or (how == "away" and r.chance.random() < 0.5):
            r.stack.broker.stop()
        else:
            r.stack.broker.kill()
    r.say(f"broker: {how}")
    time.sleep(r.uniform(0.8, 1.2) * r.away if how == "away" else 0)
    r.stack.broker.start()
    r.say("the broker is back")


def alarm(r: Round) -> None:
    """A memory alarm blocks publishers while the driver reports and ends."""
    r.start(r.uniform(8, 12))
    r.until("begin")
    time.sleep(r.uniform(0, 4))
    r.stack.set_alarm(on=True)
    r.say("memory alarm")
    try:
        r.until("end")
        time.sleep(r.uniform(5, 40))
    finally:
        r.stack.set_alarm(on=False)
    r.say("no alarm")


def delivery_timeout(r: Round, *, renewed: bool) -> None:
    """The broker's delivery timeout far below the driver's: its channel is closed again and again.

    With ``renewed`` the driver renews its will in time, and nothing is noticed.
    """
    r.stack.set_delivery_timeout(12, 4)
    r.stack.gates[str(r.notes)] = Renewing(4.0 if renewed else 600.0)
    text = "has lost the driver's connection"
    r.expected = Expected(not_text=text if renewed else "", text="" if renewed else text)
    try:
        r.start(r.uniform(45, 55))
        r.until("end")
    finally:
        r.stack.set_delivery_timeout(1800, 60)


class Renewing(Gate):
    """Changes how often the driver of a submission renews its will, in seconds."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def on_request(self, body: bytes) -> bytes | None:
        """A submission with another ``will_renewal``."""
        submission = json.loads(body)
        variables = submission["environmentVariables"]
        handover = json.loads(base64.b64decode(variables[VARIABLE]))
        handover["settings"]["will_renewal"] = self._seconds
        variables[VARIABLE] = base64.b64encode(json.dumps(handover).encode()).decode()
        return json.dumps(submission).encode()


# The network ---------------------------------------------------------------------------------------------------------


def network_fault(r: Round, whose: str, how: str, stage: str) -> None:
    """The line of drivers and workers, or of the triggerers, is cut, refuses, is black-holed or slow."""
    line = r.stack.driver_line if whose == "driver" else r.stack.triggerer_line
    r.expected = Expected(tries=(1, 1) if stage == "middle" or whose == "triggerer" else ANY_TRIES)
    r.start(r.uniform(8, 16))
    r.until(stage)
    lasts = r.uniform(2, 45)
    if how == "cut":
        line.cut()
        lasts = 0.0
    elif how == "refuses":
        line.refuse()
    elif how == "black hole":
        line.black_hole()
    else:
        line.slow(r.uniform(0.02, 0.2))
    r.say(f"{whose} line: {how}, {lasts:.1f} s")
    if whose == "driver":
        presumed_dead(r, lasts - SILENCE if how == "black hole" else lasts if how == "refuses" else 0)
        if lasts:
            # A worker that resumes meanwhile needs the line.
            r.expected.tries = ANY_TRIES
    time.sleep(lasts)
    line.restore()
    r.say("restored")


# A retry -------------------------------------------------------------------------------------------------------------


def retry_before_start(r: Round, *, ever: bool) -> None:
    """The worker is killed before it knows Spark's name for the driver, and the driver begins only in the next try."""
    r.expected = Expected(tries=(2, 2))
    with Held(r, answer=True) as gate:
        r.start(6)
        gate.wait()
        r.until("jvm")
        jvms = r.jvms()
        send(jvms, signal.SIGSTOP if ever else signal.SIGKILL)
        r.say("stopped the JVM" if ever else "killed the JVM")
        if r.drivers():
            raise Missed("the JVM was stopped too late")
        r.kill_worker()
    if not ever:
        return
    r.wait(lambda: "Submitted " in r.log(attempt=2), "second submission", every=0.2)
    time.sleep(r.uniform(0, 5))
    send(jvms, signal.SIGCONT)
    r.say("let the JVM go on")


# A person ------------------------------------------------------------------------------------------------------------


def task_marked(r: Round, state: str, stage: str) -> None:
    """The deferred task is marked: the job is stopped, and nothing is run again."""
    r.expected = Expected(states=(state,), ends=(0, 0))
    r.start(30)
    r.until_watched()
    r.until(stage)
    r.stack.airflow.api("PATCH", f"dags/{r.dag_id}/dagRuns/{r.run_id}/taskInstances/job", json={"new_state": state})
    r.say(f"marked as {state}")


def task_marked_without_broker(r: Round, *, away: bool) -> None:
    """Marked as failed while the driver cannot be asked to stop: an alarm blocks publishers, or the broker is away."""
    r.expected = Expected(states=("failed",), ends=(0, 0), queues_may_stay=away)
    r.start(60)
    r.until_watched()
    r.until("begin")
    if away:
        r.stack.broker.kill()
    else:
        r.stack.set_alarm(on=True)
    try:
        r.stack.airflow.api(
            "PATCH", f"dags/{r.dag_id}/dagRuns/{r.run_id}/taskInstances/job", json={"new_state": "failed"}
        )
        r.say("marked as failed without a broker to tell it")
        r.until_no_driver()
    finally:
        if away:
            r.stack.broker.start()
        else:
            r.stack.set_alarm(on=False)


def task_cleared(r: Round, stage: str) -> None:
    """The deferred task is cleared: its job is stopped, also where it has ended, and a new one runs."""
    at_end = stage == "end"
    r.expected = Expected(ends=(2, 2) if at_end else (1, 1), tries=(2, 2))
    r.start(2 if at_end else 20)
    r.until_watched()
    r.until(stage)
    if at_end and not r.state_is("deferred")():
        raise Missed("the task was not deferred any more")
    r.stack.airflow.api(
        "POST",
        f"dags/{r.dag_id}/clearTaskInstances",
        json={
            "dry_run": False,
            "dag_run_id": r.run_id,
            "task_ids": ["job"],
            "only_failed": False,
            "reset_dag_runs": True,
        },
    )
    r.say("cleared")


def task_timed_out(r: Round) -> None:
    """``execution_timeout`` passes while deferred."""
    r.expected = Expected(states=("failed",), ends=(0, 0), text="has not ended within execution_timeout")
    r.start(180, "chaos_timeout")


def never_started(r: Round) -> None:
    """The driver dies before it could report: ``start_timeout`` ends the first try."""
    r.expected = Expected(tries=(2, 2), text="no driver has reported within start_timeout")
    r.start(5)
    r.until_deferred()
    r.until("jvm")
    if r.drivers():
        raise Missed("the driver was too quick")
    send(r.jvms(), signal.SIGKILL)
    r.say("killed the JVM")


# The table -----------------------------------------------------------------------------------------------------------

STAGES = ("before", "submit", "start", "middle", "end", "resume")

FAULTS: dict[str, Callable[[Round], None]] = {
    "no fault": lambda r: r.start(r.uniform(1, 12)),
    **{
        f"triggerer killed, {moment}": partial(triggerer_killed, moment=moment)
        for moment in ("before the end", "at the end", "just after the end", "before its event is stored")
    },
    **{
        f"both triggerers killed, {moment}": partial(triggerer_killed, moment=moment, both=True)
        for moment in ("before the end", "just after the end", "before its event is stored")
    },
    "triggerer frozen, during the wait": partial(triggerer_frozen, moment="during the wait"),
    "triggerer frozen, through the end": partial(triggerer_frozen, moment="through the end"),
    "worker killed before it submits": worker_killed_before_submit,
    **{
        f"worker killed submitting, {then}": partial(worker_killed_submitting, then=then)
        for then in ("it is lost", "it arrives late", "the driver still runs", "the driver has ended")
    },
    "worker killed deferring": worker_killed_deferring,
    **{
        f"worker killed resuming, {moment}": partial(worker_killed_resuming, moment=moment)
        for moment in ("before reading", "after reading", "cleaning up")
    },
    "answer to the submission lost": answer_lost,
    **{
        f"{what} killed at {stage}": partial(driver_killed, what=what, stage=stage)
        for what in ("Python", "JVM", "Spark worker")
        for stage in ("start", "middle", "end")
        # Nothing of the driver has started then: never_started is that case.
        if (what, stage) != ("JVM", "start")
    },
    **{
        f"driver frozen {'for long' if long else 'briefly'} at {stage}": partial(driver_frozen, stage=stage, long=long)
        for long in (False, True)
        for stage in ("start", "middle", "end")
    },
    "JVM killed before Python starts": never_started,
    **{
        f"broker {how}, {stage}": partial(broker_fault, how=how, stage=stage)
        for how in ("restart", "killed", "away")
        for stage in STAGES
    },
    **{
        f"{whose} line {how} at {stage}": partial(network_fault, whose=whose, how=how, stage=stage)
        for whose in ("driver", "triggerer")
        for how in ("cut", "refuses", "black hole", "slow")
        for stage in ("start", "middle", "end")
    },
    "memory alarm": alarm,
    "delivery timeout, will renewed": partial(delivery_timeout, renewed=True),
    "delivery timeout, channel closed": partial(delivery_timeout, renewed=False),
    "retry, the driver starts late": partial(retry_before_start, ever=True),
    "retry, the driver never starts": partial(retry_before_start, ever=False),
    **{
        f"task marked {state} at {stage}": partial(task_marked, state=state, stage=stage)
        for state in ("success", "failed")
        for stage in ("start", "middle")
    },
    "task marked failed, broker away": partial(task_marked_without_broker, away=True),
    "task marked failed, memory alarm": partial(task_marked_without_broker, away=False),
    **{f"task cleared at {stage}": partial(task_cleared, stage=stage) for stage in ("start", "middle", "end")},
    "task timed out": task_timed_out,
}

#: Faults that touch nothing but the round's own job: several of them can be played at a time.
OWN = frozenset(
    name
    for name in FAULTS
    if name.startswith(("no fault", "worker killed", "answer", "Python", "JVM", "driver frozen", "retry", "task"))
    and "broker" not in name
    and "alarm" not in name
)
