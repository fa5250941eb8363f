"""The state machine of job, will, driver, trigger and task, explored exhaustively.

What can happen is written down as a function from a state to the states that may follow (:func:`steps`); each of its
parts names the code that it mirrors. All interleavings of them are visited, with up to a few faults at any points:
a process killed, a connection cut, a triggerer frozen, a submission whose answer is lost, a task cleared or marked.
Then the invariants are checked, in every state and for every step:

``stale``
    The result that Airflow stores is what a driver of the task's current generation (a clear begins a new one) said.
``lost success``
    Once the broker has a driver's ``succeeded``, its generation submits nothing more and does not fail. Excepted are a
    task that a person marked, and one whose last try was killed: Airflow then runs nothing more that could look.
``two drivers``
    At most one driver runs whose queues exist. (A driver whose queues are gone stops as soon as it notices.)
``turned away``
    A driver finds its queues gone only where Airflow gave its job up.
``ran twice``
    Where the application ran to its end twice in one generation, nobody could have known of the first time: its driver
    could not tell the broker. This is what exactly-once cannot be better than; that it happens only if a driver dies
    between its end and its word, or is cut off for longer than ``lost_grace``, is likely and not certain.
``stuck``
    From every state the task ends without a further fault: nothing waits for what cannot come.
``left behind``
    When nothing can happen any more no queue and no driver is left. Excepted are three deaths whose survivors Airflow
    does not tell: after the success is stored and before the clean-up, of the last try, and of every triggerer when a
    person marks the task. Such queues expire (``retention``).

That the model can fail is shown by breaking one rule at a time.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

TRIES = 2


@dataclass(frozen=True)
class Protocol:
    """The rules that can be broken, each as the code has it."""

    #: SparkJobOperator._submit saves the record before anything else.
    stores_before_submitting: bool = True
    #: SparkJobOperator._submit declares the queues before it submits.
    declares_before_submitting: bool = True
    #: Link._take_office: no will queue, no driver.
    driver_needs_will: bool = True
    #: Mailbox.fence deletes the will queue only if nobody consumes it.
    fence_if_unused: bool = True
    #: A `lost` is not the last word while something follows it in the queue.
    reads_past_lost: bool = True
    #: SparkJobOperator looks into the queue again when it has fenced a job.
    looks_again: bool = True
    #: ... and lets other readers put back first what they hold.
    waits_for_readers: bool = True
    #: SparkJobOperator._take_up: a task that was cleared does not take up the job.
    heeds_generation: bool = True
    #: SparkJobOperator._succeed: the queues go when the success is stored.
    deletes_after_success: bool = True
    #: SparkJobTrigger: the event that decides is not acknowledged.
    trigger_peeks: bool = True
    #: SparkJobTrigger.on_kill: nothing is stopped once it has fired.
    kills_only_unfired: bool = True
    #: SparkJobTrigger.on_kill: nor while the task is under way; another trigger or a worker may be about the job.
    kills_only_given_up: bool = True


class Job(NamedTuple):
    """One job: its queues and its driver."""

    generation: int
    #: The job queue: L(ost), R(esumed), S(ucceeded) in order; None when there is no queue.
    queue: str | None = None
    #: Whether the will queue exists.
    will: bool = False
    #: none, pending (the master has it), claimed, runs, ended (has a result), said (the broker has it), over.
    driver: str = "none"
    #: Whether the driver is connected, and so consumes the will queue.
    up: bool = False
    #: Whether the driver holds its will.
    laid: bool = False
    #: Whether Airflow knows Spark's name for the driver.
    id_kept: bool = False
    #: Whether the application came to its end.
    ran: bool = False
    #: Whether the broker had the driver's `succeeded`.
    told: bool = False
    #: Whether Airflow gave the job up on purpose: cleared or marked.
    stopped: bool = False


class State(NamedTuple):
    """Everything."""

    jobs: tuple[Job, ...] = ()
    #: queued, running, deferred, resuming, success, failed.
    task: str = "queued"
    #: What the worker does next; empty without a worker.
    worker: str = "begin"
    #: The job that the try is about, and the one in the task state store.
    job: int = -1
    record: int = -1
    #: The trigger: none, waits, fired, stored (its event is); and what it saw: S, L, N(ever started), V(anished).
    trigger: str = "none"
    verdict: str = ""
    triggerer: bool = True
    #: A frozen triggerer's connection still holds what the queue had.
    ghost: bool = False
    #: The job that a cancelled trigger is about to stop.
    killing: int = -1
    #: The job that a frozen triggerer's trigger waits for.
    frozen: int = -1
    tries: int = 1
    generation: int = 0
    faults: int = 0
    stored: int = -1
    #: A death that leaves queues behind, see above.
    excused: bool = False
    marked: bool = False


class Violation(Exception):
    """An invariant does not hold."""


# What parts do ---------------------------------------------------------------------------------------------------------


def put(state: State, index: int, **changes: object) -> State:
    """The state with a job changed."""
    jobs = list(state.jobs)
    jobs[index] = jobs[index]._replace(**changes)
    return state._replace(jobs=tuple(jobs))


def disconnect(job: Job) -> Job:
    """The broker notices that the driver's connection is gone: it says `lost` if a will was laid (job/will.py)."""
    queue = job.queue + "L" if job.up and job.laid and job.queue is not None else job.queue
    return job._replace(queue=queue, up=False, laid=False)


def delete(state: State, index: int) -> State:
    """Mailbox.delete."""
    return put(state, index, queue=None, will=False)


def stop(state: State, index: int) -> State:
    """Mailbox.stop: a driver that hears the cancel ends; so does one that finds its queues gone."""
    job = state.jobs[index]
    state = delete(put(state, index, stopped=True), index)
    if job.id_kept and job.driver in ("pending", "claimed", "runs"):
        state = put(state, index, driver="over", up=False)
    return state


def on_kill(state: State, index: int, rules: Protocol) -> State:
    """SparkJobTrigger.on_kill: Airflow does not say why a trigger is cancelled, so that asks for the task's state."""
    cleared = state.jobs[index].generation < state.generation
    if state.task in ("success", "failed") or (cleared and state.task == "queued"):
        return stop(state, index)
    if rules.kills_only_given_up:
        return state
    # Not on purpose: the job is still wanted.
    return put(stop(state, index), index, stopped=state.jobs[index].stopped)


def fail_try(state: State, *, killed: bool) -> State:
    """The try is over; Airflow queues the next, or the task has failed."""
    state = state._replace(worker="", job=-1, verdict="")
    if state.tries < TRIES:
        return state._replace(task="queued", worker="begin", tries=state.tries + 1)
    return state._replace(task="failed", excused=state.excused or killed)


def hidden(state: State) -> bool:
    """Whether another reader holds what the queue has."""
    return state.ghost or state.trigger in ("fired", "stored")


def has_success(queue: str | None, rules: Protocol) -> bool:
    """Whether who reads the queue finds the success in it."""
    if queue is None:
        return False
    if not rules.reads_past_lost:
        queue = queue.split("L", maxsplit=1)[0]
    return "S" in queue


# What can happen -------------------------------------------------------------------------------------------------------


class Step(NamedTuple):
    """One thing that can happen."""

    name: str
    state: State
    fault: bool = False


def steps(state: State, rules: Protocol, faults: int) -> Iterator[Step]:
    """Everything that can happen next, with up to ``faults`` faults in all."""
    for index, job in enumerate(state.jobs):
        yield from driver_steps(state, index, job, rules)
    if state.worker:
        yield from worker_steps(state, rules)
    yield from trigger_steps(state, rules)
    if state.faults < faults:
        for name, after in fault_steps(state):
            yield Step(name, after._replace(faults=state.faults + 1), fault=True)


def driver_steps(state: State, index: int, job: Job, rules: Protocol) -> Iterator[Step]:
    """job/link.py and job/session.py."""
    exists = job.queue is not None and job.will
    if job.driver == "pending":
        # Link._take_office: consume the will queue, look for the job queue.
        if exists or not rules.driver_needs_will:
            yield Step("driver claims", put(state, index, driver="claimed", up=True))
        else:
            yield Step("driver is superseded", put(state, index, driver="over"))
    elif job.driver in ("claimed", "runs", "ended"):
        gone = not exists and rules.driver_needs_will
        if gone:
            # Will.revoked, Unroutable, or NotFound on reconnecting: JobSuperseded.
            yield Step("driver finds its queues gone", put(state, index, driver="over", up=False, laid=False))
        if job.driver == "claimed" and not gone:
            yield Step("driver lays", put(state, index, driver="runs", laid=True))
        if job.driver == "runs":
            # Connected or not: reporting never stops the application.
            yield Step("application ends", put(state, index, driver="ended", ran=True))
        if job.driver in ("runs", "ended") and not job.up and not gone:
            yield Step("driver resumes", put(state, index, up=True, laid=True, queue=(job.queue or "") + "R"))
        if job.driver == "ended" and job.up and job.queue is not None:
            yield Step("driver says succeeded", put(state, index, driver="said", queue=job.queue + "S", told=True))
    elif job.driver == "said":
        # Will.release
        yield Step("driver releases", put(state, index, driver="over", up=False, laid=False, will=False))


def worker_steps(state: State, rules: Protocol) -> Iterator[Step]:
    """operators/spark_job.py; one step for each thing that may be stored when the worker is killed."""
    at, job = state.worker, state.jobs[state.job] if state.job >= 0 else Job(-1)

    def go(name: str, worker: str, after: State = state, **changes: object) -> Step:
        return Step(name, after._replace(worker=worker, **changes))

    if at == "begin":
        # execute, _take_up
        state = state._replace(task="running")
        if state.record < 0 or state.jobs[state.record].queue is None:
            yield go("try begins", "store", state)
        elif state.jobs[state.record].generation != state.generation and rules.heeds_generation:
            yield go("try begins after a clear", "stop", state, job=state.record)
        else:
            yield go("try takes up", "look", state, job=state.record)
    elif at == "stop":
        yield go("worker stops the old job", "store", stop(state, state.job))
    elif at == "look":
        found = not hidden(state) and has_success(job.queue, rules)
        if not found and job.id_kept and job.driver == "pending":
            # _may_still_start
            yield go("driver may still start", "defer")
        yield go("worker looks", "push" if found else "fence")
    elif at in ("fence", "conclude", "doubt"):
        if job.up and rules.fence_if_unused:
            yield go("driver is there", "defer")
        else:
            fenced = {"fence": "fenced", "conclude": "concluded", "doubt": "doubted"}[at]
            yield go("worker fences", fenced, put(state, state.job, will=False))
    elif at in ("fenced", "concluded", "doubted"):
        success, over = {"fenced": ("push", "drop"), "concluded": ("push", "fail"), "doubted": ("defer", "fail")}[at]
        if not rules.looks_again:
            yield go("job is over", over)
        elif not hidden(state) or not rules.waits_for_readers:
            found = not hidden(state) and has_success(job.queue, rules)
            yield go("worker looks again", success if found else over)
    elif at == "drop":
        after = put(state, state.job, driver="over", up=False) if job.id_kept else state
        yield go("worker drops the job", "store", delete(after, state.job))
    elif at == "store":
        # _submit
        index = len(state.jobs)
        after = state._replace(jobs=(*state.jobs, Job(state.generation)), job=index)
        if rules.stores_before_submitting:
            after = after._replace(record=index)
        yield go("worker stores the id", "declare" if rules.declares_before_submitting else "submit", after)
    elif at == "declare":
        after = put(state, state.job, queue="", will=True)
        yield go("worker declares", "submit" if rules.declares_before_submitting else "keep", after)
    elif at == "submit":
        after = put(state, state.job, driver="pending")
        yield go("worker submits", "keep" if rules.declares_before_submitting else "declare", after)
    elif at == "keep":
        yield go("worker stores Spark's name", "defer", put(state, state.job, id_kept=True), record=state.job)
    elif at == "defer":
        # BaseOperator.defer
        if state.trigger == "none":
            yield go("task defers", "", state, task="deferred", trigger="waits")
    elif at == "resume":
        yield from resume_steps(state, job, rules)
    elif at == "push":
        # What _succeed does.
        after = state if rules.deletes_after_success else delete(state, state.job)
        yield go("worker pushes the XCom", "succeed", after)
    elif at == "succeed":
        if not job.told or job.generation != state.generation:
            raise Violation("stale")
        yield go("Airflow stores success", "clean", state, task="success", stored=state.job)
    elif at == "clean":
        # the success callback: _clean_up
        yield go("worker cleans up", "", delete(state, state.job))
    elif at == "fail":
        after = put(state, state.job, driver="over", up=False) if job.id_kept else state
        yield Step("try fails", fail_try(delete(after, state.job), killed=False))


def resume_steps(state: State, job: Job, rules: Protocol) -> Iterator[Step]:
    """SparkJobOperator.resume."""
    if state.verdict == "V":
        yield Step("job has vanished", state._replace(worker="fail"))
    elif state.verdict == "N":
        yield Step("worker believes it never started", state._replace(worker="conclude"))
    elif not hidden(state):
        found = has_success(job.queue, rules)
        otherwise = "conclude" if state.verdict == "L" else "fail"
        yield Step("worker reads", state._replace(worker="push" if found else otherwise))


def trigger_steps(state: State, rules: Protocol) -> Iterator[Step]:
    """triggers/spark_job.py and job/watch.py."""
    if not state.triggerer:
        yield Step("triggerer starts", state._replace(triggerer=True))
    if state.ghost:
        yield Step("broker misses heartbeats", state._replace(ghost=False))
    if state.killing >= 0 and state.triggerer:
        yield Step("cancelled trigger looks", on_kill(state, state.killing, rules)._replace(killing=-1))
    if state.frozen >= 0:
        # It finds its trigger gone to another triggerer, and cancels it.
        yield Step("frozen triggerer wakes", on_kill(state, state.frozen, rules)._replace(frozen=-1))
    if state.trigger == "waits" and state.triggerer:
        yield from watch_steps(state, state.jobs[state.job], rules)
    elif state.trigger == "fired" and state.triggerer:
        yield Step("event is stored", state._replace(trigger="stored", task="resuming", worker="resume"))
    elif state.trigger == "stored":
        after = state._replace(trigger="none")
        if not rules.kills_only_unfired:
            after = stop(after, state.job)
            after = put(after, state.job, stopped=state.jobs[state.job].stopped)
        yield Step("fired trigger is cancelled", after)


def watch_steps(state: State, job: Job, rules: Protocol) -> Iterator[Step]:
    """Watch.outcome; time passes at will, so a deadline may strike whenever its condition holds."""

    def fire(verdict: str, after: State = state) -> Step:
        return Step(f"trigger fires {verdict}", after._replace(trigger="fired", verdict=verdict))

    if job.queue is None:
        yield fire("V")
        return
    queue = "" if state.ghost else job.queue
    if "S" in queue:
        after = state if rules.trigger_peeks else put(state, state.job, queue=queue.replace("S", ""))
        yield fire("S", after)
        return
    if "R" in queue:
        yield Step("trigger reads resumed", put(state, state.job, queue=queue.rpartition("R")[2]))
    elif "L" in queue:
        yield fire("L")
    elif not job.up:
        yield fire("N")


def fault_steps(state: State) -> Iterator[tuple[str, State]]:
    """What may go wrong at any moment."""
    for index, job in enumerate(state.jobs):
        if job.driver in ("claimed", "runs", "ended", "said"):
            dead = disconnect(job)._replace(driver="over")
            yield "driver is killed", state._replace(jobs=(*state.jobs[:index], dead, *state.jobs[index + 1 :]))
            if job.up and job.driver != "said":
                # A cut, a broker that restarts, a frozen process: the same to the broker.
                phase = "pending" if job.driver == "claimed" else job.driver
                away = disconnect(job)._replace(driver=phase)
                yield "driver is cut off", state._replace(jobs=(*state.jobs[:index], away, *state.jobs[index + 1 :]))
    if state.worker == "clean":
        yield "worker is killed before the clean-up", state._replace(worker="", excused=True)
    elif state.worker and state.task in ("running", "resuming"):
        yield f"worker is killed at {state.worker}", fail_try(state, killed=True)
    if state.worker == "keep":
        # The master took it, and the connection to it broke before its answer.
        yield "submission's answer is lost", state._replace(worker="doubt")
    if state.triggerer:
        back = {"waits": "waits", "fired": "waits"}.get(state.trigger, "none")
        # A cancel that was under way dies with it, and nobody else hears of it.
        orphaned = state.excused or (state.killing >= 0 and state.task == "failed")
        killed = state._replace(triggerer=False, trigger=back, verdict="" if back == "waits" else state.verdict)
        yield "triggerer is killed", killed._replace(killing=-1, excused=orphaned)
        if state.trigger in ("waits", "fired"):
            frozen = state.job if state.trigger == "waits" else -1
            yield "triggerer freezes", state._replace(trigger="waits", verdict="", ghost=True, frozen=frozen)
    if state.task == "deferred":
        unfired = state.trigger == "waits"
        cancelled = state._replace(trigger="none", verdict="", job=-1)
        if unfired and state.triggerer:
            cancelled = cancelled._replace(killing=state.job)
        anew = {"task": "queued", "worker": "begin", "tries": 1, "generation": state.generation + 1}
        yield "task is cleared", cancelled._replace(**anew)
        # With no trigger to stop the job, or one that has fired, a marked task's job is nobody's.
        orphaned = state.excused or not (unfired and state.triggerer)
        yield "task is marked as failed", cancelled._replace(task="failed", marked=True, excused=orphaned)
    if state.task == "failed" and not state.worker and state.killing < 0:
        anew = {"task": "queued", "worker": "begin", "tries": 1, "generation": state.generation + 1}
        yield "task is cleared", state._replace(**anew, excused=False, marked=False)


# Invariants ------------------------------------------------------------------------------------------------------------


def check(before: State, after: State) -> None:
    """The invariants of every step."""
    if sum(job.driver in ("runs", "ended") and job.up and job.queue is not None and job.will for job in after.jobs) > 1:
        raise Violation("two drivers")
    early = before.worker == after.worker == "declare" and before.jobs[before.job].driver == "pending"
    if early and after.jobs[before.job].driver == "over":
        raise Violation("turned away")
    for index, job in enumerate(after.jobs):
        later = after.jobs[index + 1 :]
        if job.told and job.ran and any(other.ran and other.generation == job.generation for other in later):
            raise Violation("ran twice")
    told = [job for job in before.jobs if job.told and not job.stopped and job.generation == before.generation]
    if told and before.generation == after.generation:
        if len(after.jobs) > len(before.jobs):
            raise Violation("lost success")
        if after.task == "failed" and before.task != "failed" and not after.marked and not after.excused:
            raise Violation("lost success")


def is_end(state: State) -> bool:
    """Whether the task is over."""
    return state.task in ("success", "failed") and not state.worker


def check_rest(state: State) -> None:
    """The invariant of a state in which nothing happens without a fault."""
    if not is_end(state):
        raise Violation("stuck")
    busy = any(job.driver not in ("none", "over") for job in state.jobs)
    left = any(job.queue is not None or job.will for job in state.jobs)
    if busy or (left and not state.excused):
        raise Violation("left behind")


@dataclass
class Explored:
    """What was visited."""

    states: int = 0
    steps: int = 0
    #: The first violation of each kind and how it came about: the shortest way, because the search is breadth-first.
    violations: dict[str, list[str]] = field(default_factory=dict)
    finals: list[State] = field(default_factory=list)


def explore(rules: Protocol, faults: int, *, first: bool = False) -> Explored:
    """Visit every reachable state.

    :param first: stop at the first violation.
    """
    start = State()
    found = Explored()
    came: dict[State, tuple[State, str] | None] = {start: None}
    peaceful: dict[State, list[State]] = {}
    waiting = deque([start])

    def blame(kind: str, state: State, last: str = "") -> None:
        if kind not in found.violations:
            found.violations[kind] = [*way(came, state), *([last] if last else [])]

    while waiting and not (first and found.violations):
        state = waiting.popleft()
        resting = True
        try:
            for step in steps(state, rules, faults):
                found.steps += 1
                if not step.fault:
                    resting = False
                    peaceful.setdefault(step.state, []).append(state)
                try:
                    check(state, step.state)
                except Violation as violation:
                    blame(str(violation), state, step.name)
                    continue
                if step.state not in came:
                    came[step.state] = state, step.name
                    waiting.append(step.state)
            if resting:
                check_rest(state)
        except Violation as violation:
            blame(str(violation), state)
        if is_end(state):
            found.finals.append(state)
    found.states = len(came)
    if not first:
        # Backwards from the ends: who is not reached cannot get there without a fault.
        hopeful = {state for state in came if is_end(state)}
        back = list(hopeful)
        while back:
            for before in peaceful.get(back.pop(), ()):
                if before not in hopeful:
                    hopeful.add(before)
                    back.append(before)
        for state in came:
            if state not in hopeful:
                blame("stuck", state)
                break
    return found


def way(came: dict[State, tuple[State, str] | None], state: State) -> list[str]:
    """How a state came about."""
    names = []
    while (before := came[state]) is not None:
        state, name = before
        names.append(name)
    return names[::-1]


# Tests -----------------------------------------------------------------------------------------------------------------


def told(violations: dict[str, list[str]]) -> str:
    return "\n".join(f"{kind}: {' > '.join(names)}" for kind, names in violations.items())


def test_without_a_fault_the_application_runs_once_and_its_result_is_stored():
    found = explore(Protocol(), 0)
    assert not found.violations, told(found.violations)
    for state in found.finals:
        # Time passes at will in the model: `start_timeout` may strike before the driver begins, in both tries.
        assert sum(job.ran for job in state.jobs) == (1 if state.task == "success" else 0)


@pytest.mark.parametrize("faults", [1, 2])
def test_every_interleaving_keeps_the_invariants(faults):
    found = explore(Protocol(), faults)
    print(f"\n{faults} faults: {found.states:,} states, {found.steps:,} steps, {len(found.finals):,} ends")
    assert not found.violations, told(found.violations)
    assert found.states > 1_000
    assert any(state.task == "success" and state.faults == faults for state in found.finals)


@pytest.mark.parametrize(
    ("broken", "kind"),
    [
        ("stores_before_submitting", "lost success"),
        ("declares_before_submitting", "turned away"),
        ("driver_needs_will", "left behind"),
        ("fence_if_unused", "lost success"),
        ("reads_past_lost", "lost success"),
        ("looks_again", "lost success"),
        ("waits_for_readers", "lost success"),
        ("heeds_generation", "stale"),
        ("deletes_after_success", "lost success"),
        ("trigger_peeks", "lost success"),
        ("kills_only_unfired", "lost success"),
        ("kills_only_given_up", "lost success"),
    ],
)
def test_a_broken_rule_is_found(broken, kind):
    found = explore(replace(Protocol(), **{broken: False}), 2, first=True)
    print(f"\n{broken}: {told(found.violations)}")
    assert kind in found.violations
