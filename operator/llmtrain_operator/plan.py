"""One pass of the control loop: what is known of a job -> its new status, what to do, what to tell its agents.

Pure, level-triggered and idempotent: the plan depends on the present alone, so a pass that was lost, repeated or
interrupted does no harm, and planning again after everything was carried out gives an empty plan. The order of the
ladder is: finished, invalid, suspended, round lost, round to be formed, round running.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from llmtrain_operator import failure, membership, podset, progress
from llmtrain_operator.api import FailureStatus, JobSpec, JobStatus, MemberStatus, RoundStatus
from llmtrain_operator.api.validation import Problem
from llmtrain_operator.conditions import ConditionType, find, is_true, put, seconds, timestamp
from llmtrain_operator.contract import names
from llmtrain_operator.contract.wire import Directive, Failure, Member, Round
from llmtrain_operator.state import (
    Action,
    ApplyChildren,
    DeleteJob,
    DeletePod,
    Event,
    FillDesired,
    JobView,
    Observed,
    Plan,
)

STOP_PATIENCE = 120.0
"""Seconds after the end within which members stop by themselves; then their pods are deleted."""

State = Literal["Pending", "Invalid", "Starting", "Running", "Recovering", "Suspended", "Complete", "Failed"]


@dataclass
class _Pass:
    """The plan while it is being made."""

    job: JobView
    spec: JobSpec
    observed: Observed
    now: float
    status: JobStatus
    actions: list[Action] = field(default_factory=list)
    directives: dict[str, Directive] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    look_again: float | None = None

    def set(self, **values: Any) -> None:
        self.status = self.status.model_copy(update=values)

    def condition(self, kind: ConditionType, value: bool, reason: str, message: str) -> None:
        old = self.status.conditions
        self.set(conditions=put(old, kind, value, reason, message, generation=self.job.generation, now=self.now))

    def tell(self, reason: str, message: str, *, warning: bool = False) -> None:
        self.events.append(Event("Warning" if warning else "Normal", reason, message))

    def wake_in(self, delay: float) -> None:
        delay = max(delay, 0.0)
        self.look_again = delay if self.look_again is None else min(self.look_again, delay)

    def instruct_all(self, action: Literal["wait", "stop"], reason: str) -> None:
        for pod in self.observed.pods:
            if pod.phase not in podset.ENDED_PHASES:
                self.directives[pod.uid] = Directive(action, reason)

    def done(self) -> Plan:
        return Plan(self.status, tuple(self.actions), self.directives, tuple(self.events), self.look_again)


def plan(
    job: JobView, spec: JobSpec, problems: tuple[Problem, ...], status: JobStatus, observed: Observed, now: float
) -> Plan:
    """What to do about `job` at `now` (seconds since 1970). `problems`: what is wrong with the spec, if anything."""
    run = _Pass(job, spec, observed, now, status)
    if job.deleting:
        return run.done()
    _book(run)
    _identity(run)
    if status.completion_time:
        _finished(run)
    elif problems:
        _invalid(run, problems)
    elif _suspending(run):
        _suspend(run)
    else:
        _train(run)
    return run.done()


def _book(run: _Pass) -> None:
    if run.status.completion_time:
        return
    cause = progress.cause_of(run.status, run.now)
    run.set(**progress.booked(run.status, cause, run.now))


def _identity(run: _Pass) -> None:
    alive = [pod for pod in run.observed.pods if pod.phase not in podset.ENDED_PHASES and not pod.deleting]
    run.set(
        observed_generation=run.job.generation,
        selector=f"{names.LABEL_JOB}={run.job.name},{names.LABEL_COMPONENT}=member",
        replicas=len(alive),
        start_time=run.status.start_time or timestamp(run.now),
    )


# --- the ends -------------------------------------------------------------------------------------------------------


def _finished(run: _Pass) -> None:
    assert run.status.completion_time is not None
    since = run.now - seconds(run.status.completion_time)
    run.instruct_all("stop", f"the job is {run.status.state}")
    lingering = [pod for pod in run.observed.pods if pod.phase not in podset.ENDED_PHASES and not pod.deleting]
    for pod in lingering:
        if pod.phase == "Pending" or since >= STOP_PATIENCE:
            run.actions.append(DeletePod(pod.name, pod.uid, f"the job is {run.status.state}"))
        else:
            run.wake_in(STOP_PATIENCE - since)
    if run.spec.ttl_seconds_after_finished is not None:
        left = run.spec.ttl_seconds_after_finished - since
        if left <= 0:
            run.actions.append(DeleteJob())
        else:
            run.wake_in(left)


def _finish(run: _Pass, state: Literal["Complete", "Failed"], reason: str, message: str) -> None:
    run.set(state=state, completion_time=timestamp(run.now), waiting_since=None, not_before=None)
    run.condition("Running", False, reason, message)
    run.condition("Recovering", False, reason, message)
    run.condition(state, True, reason, message)
    run.tell(reason if state == "Failed" else "Completed", message, warning=state == "Failed")
    _finished(run)


def _invalid(run: _Pass, problems: tuple[Problem, ...]) -> None:
    message = "; ".join(f"{p.path}: {p.message} (is {p.value!r}). {p.remedy}" for p in problems)
    if not is_true(run.status.conditions, "Valid") and find(run.status.conditions, "Valid"):
        known = find(run.status.conditions, "Valid")
        repeated = known is not None and known.message == message
    else:
        repeated = False
    run.condition("Valid", False, "InvalidSpec", message)
    if not repeated:
        run.tell("InvalidSpec", message, warning=True)
    if run.status.round is None:
        run.set(state="Invalid")
        return
    # Edited while it trains: what runs goes on as it was created.
    _direct(run)


def _suspending(run: _Pass) -> bool:
    if not run.spec.suspend:
        return False
    step = run.status.progress.step if run.status.progress else 0
    allowed = names.ANNOTATION_DISCARD_PROGRESS in run.job.annotations
    if run.status.state == "Suspended" or allowed or not step:
        return True
    run.condition(
        "Suspended",
        False,
        "ProgressWouldBeLost",
        f"the job has trained {step} steps and this version cannot save them. To suspend it all the same, annotate it "
        f"with {names.ANNOTATION_DISCARD_PROGRESS}=true (llmtrain suspend --discard-progress)",
    )
    return False


def _suspend(run: _Pass) -> None:
    run.condition("Valid", True, "SpecAccepted", "the spec is valid")
    if run.status.state != "Suspended":
        run.tell("Suspended", "stopping all members; spec.suspend is true")
    run.set(state="Suspended", round=None, progress=None, nodes="0", waiting_since=None, not_before=None)
    run.condition("Suspended", True, "SuspendRequested", "spec.suspend is true")
    run.condition("Running", False, "Suspended", "the job is suspended")
    run.condition("Recovering", False, "Suspended", "the job is suspended")
    run.instruct_all("stop", "the job is suspended")
    for pod in run.observed.pods:
        if not pod.deleting:
            run.actions.append(DeletePod(pod.name, pod.uid, "the job is suspended"))


# --- training -------------------------------------------------------------------------------------------------------


def _train(run: _Pass) -> None:
    run.condition("Valid", True, "SpecAccepted", "the spec is valid")
    if run.status.state == "Suspended":
        run.tell("Resumed", "spec.suspend is false")
    if not run.spec.suspend:
        run.condition("Suspended", False, "NotSuspended", "spec.suspend is false")
    run.condition(
        "Protected",
        False,
        "CheckpointsNotAvailable",
        "this version takes no checkpoints: a lost member means that training begins again at step 0",
    )
    if not run.observed.children_applied:
        run.actions.append(ApplyChildren())
    if run.spec.nodes.desired is None:
        run.actions.append(FillDesired(run.spec.nodes.maximum))
    current = _current(run)
    if current and membership.succeeded(current, _pods(run), run.observed.agents):
        run.set(**progress.newest(run.status, run.observed.agents, run.now))
        steps = run.status.progress.step if run.status.progress else 0
        _finish(run, "Complete", "TrainingComplete", f"all {len(current.members)} members finished after step {steps}")
        return
    if current and (lost := membership.losses(current, _pods(run), run.observed.agents)):
        if _lose_round(run, current, lost):
            return
        current = None
    if current is None:
        _await_round(run)
    _arrange(run)
    _direct(run)
    _describe(run)


def _current(run: _Pass) -> Round | None:
    stored = run.status.round
    if stored is None:
        return None
    members = tuple(Member(m.index, m.incarnation, m.pod, m.uid, m.host, m.store_port) for m in stored.members)
    return Round(stored.number, members, stored.procs_per_member)


def _pods(run: _Pass) -> dict[str, Any]:
    return {pod.uid: pod for pod in run.observed.pods}


def _wanted(run: _Pass) -> int:
    nodes = run.spec.nodes
    desired = nodes.desired if nodes.desired is not None else nodes.maximum
    return max(nodes.min, min(desired, nodes.maximum))


def _lose_round(run: _Pass, current: Round, lost: tuple[membership.Loss, ...]) -> bool:
    """End `current`, judge what happened, and say whether that ended the job too."""
    reported = [
        agent.report.failure
        for member in current.members
        if (agent := run.observed.agents.get(member.uid)) and agent.report and agent.report.failure
    ]
    first = lost[0]
    rank = current.members.index(first.member) * current.procs_per_member
    step = run.status.progress.step if run.status.progress else 0
    gone = Failure(names.REASON_POD_LOST, first.detail, current.number, rank, step)
    silent = [loss for loss in lost if not loss.failed]
    mine = [f for f in reported if f.round == current.number and not (silent and failure.is_secondary(f))]
    cause = failure.root_cause(mine) or gone
    history_restarts = run.status.restarts
    history = failure.History(run.status.failures_counted, run.status.streak, _last(run.status))
    verdict = failure.judge(
        cause, history, run.spec.recovery.max_restarts, knows_steps=run.spec.entrypoint is None or step > 0
    )
    member = current.members[max(cause.rank, 0) // current.procs_per_member]
    run.set(
        round=None,
        progress=None,
        best_step=max(run.status.best_step, step),
        restarts=run.status.restarts + 1,
        failures_counted=run.status.failures_counted + verdict.counts,
        streak=verdict.streak,
        waiting_since=timestamp(run.now),
        not_before=timestamp(run.now + verdict.pause) if verdict.pause else None,
        last_failure=FailureStatus(
            reason=cause.reason,
            message=cause.message,
            traceback=cause.traceback[-4000:],
            member=member.index,
            rank=cause.rank,
            step=cause.step,
            exit_code=cause.exit_code,
            signal=cause.signal,
            time=timestamp(run.now),
        ),
    )
    said = f"member {member.index} (rank {cause.rank}) at step {cause.step}: {cause.reason}: {cause.message}"
    if verdict.fatal:
        run.set(restarts=history_restarts)
        _finish(run, "Failed", verdict.reason, verdict.message)
        return True
    run.tell("MemberLost" if cause.reason == names.REASON_POD_LOST else "WorkerFailed", said, warning=True)
    return False


def _last(status: JobStatus) -> Failure | None:
    last = status.last_failure
    return None if last is None else Failure(last.reason, last.message, 0, last.rank, last.step)


def _await_round(run: _Pass) -> None:
    """Form the next round if enough members are ready, else say what is missing."""
    if run.status.waiting_since is None:
        run.set(waiting_since=timestamp(run.now))
    assert run.status.waiting_since is not None
    if run.status.not_before and (left := seconds(run.status.not_before) - run.now) > 0:
        run.condition("Running", False, "BackingOff", f"restarting in {left:.0f} s after repeated failures")
        run.wake_in(left)
        return
    wanted = _wanted(run)
    live = podset.arrange(run.observed.pods, wanted, (), run.status.incarnations).live
    ready = membership.candidates(tuple(live.values()), run.observed.agents, run.status.rounds)
    absent = {i: live.get(i) for i in range(wanted) if all(member.index != i for member in ready)}
    formation = membership.form(
        ready,
        wanted,
        run.spec.nodes.min,
        run.now - seconds(run.status.waiting_since),
        {index: run.observed.refused.get(index) or podset.waiting_on(pod) for index, pod in absent.items()},
        hopeless=bool(absent) and all(podset.hopeless(pod) for pod in absent.values()),
    )
    if formation.look_again is not None:
        run.wake_in(formation.look_again)
    if formation.members is None:
        run.condition("Running", False, "WaitingForMembers", formation.reason)
        return
    number = run.status.rounds + 1
    members = tuple(
        MemberStatus(index=m.index, incarnation=m.incarnation, pod=m.pod, uid=m.uid, host=m.host, store_port=m.store_port)
        for m in formation.members
    )
    run.set(
        rounds=number,
        round=RoundStatus(
            number=number,
            procs_per_member=run.spec.nodes.proc_per_node,
            members=members,
            started_at=timestamp(run.now),
            reason=formation.reason,
        ),
        waiting_since=None,
        not_before=None,
    )
    run.tell("RoundStarted", f"round {number} with {len(members)} members: {formation.reason}")


def _arrange(run: _Pass) -> None:
    current = _current(run)
    in_round = {member.uid for member in current.members} if current else set()
    pods = podset.arrange(run.observed.pods, _wanted(run), in_round, run.status.incarnations, run.observed.refused)
    run.set(incarnations=dict(pods.incarnations), target_nodes=_wanted(run))
    run.actions += [*pods.delete, *pods.create]


def _direct(run: _Pass) -> None:
    current = _current(run)
    for pod in run.observed.pods:
        if pod.phase in podset.ENDED_PHASES:
            continue
        if pod.deleting:
            run.directives[pod.uid] = Directive("stop", "the pod is being deleted")
        elif current and current.rank_of(pod.uid) is not None:
            run.directives[pod.uid] = Directive("run", f"round {current.number}", current)
        else:
            run.directives[pod.uid] = Directive("wait", "not in a round yet")


def _describe(run: _Pass) -> None:
    """State, conditions and progress that follow from the round."""
    current = _current(run)
    first = run.status.rounds <= 1 and not run.status.restarts
    if current is None:
        scheduled = any(pod.scheduled for pod in run.observed.pods)
        waiting: State = "Starting" if scheduled else "Pending"
        run.set(state=waiting if first and not run.status.restarts else "Recovering", nodes=f"0/{_wanted(run)}")
        if not first:
            run.condition("Recovering", True, "RoundEnded", "the next round is being formed")
        return
    run.set(nodes=f"{len(current.members)}/{_wanted(run)}")
    run.set(**progress.newest(run.status, run.observed.agents, run.now))
    here = [run.observed.agents.get(member.uid) for member in current.members]
    working = all(
        a is None or a.report is None or (a.report.round == current.number and a.report.state in ("running", "succeeded"))
        for a in here
    )
    trained = run.status.progress is not None and run.status.progress.phase != "loading"
    if working and (trained or run.spec.entrypoint):
        run.set(state="Running")
        run.condition("Running", True, "Training", f"round {current.number} with {len(current.members)} members")
        run.condition("Recovering", False, "Training", f"round {current.number} runs")
    elif run.status.state != "Running":
        run.set(state="Starting" if first else "Recovering")
        run.condition("Running", False, "StartingWorkers", f"round {current.number}: workers are being started")
    _describe_size(run, len(current.members))


def _describe_size(run: _Pass, size: int) -> None:
    if size == _wanted(run):
        run.condition("Resizing", False, "AtTarget", f"{size} members, as wanted")
        return
    run.condition(
        "Resizing",
        True,
        "AtNextRound",
        f"{size} of {_wanted(run)} wanted members train; without checkpoints a resize now would begin again at step 0, "
        "so it takes effect when the next round starts",
    )
