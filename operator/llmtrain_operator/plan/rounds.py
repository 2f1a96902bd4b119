"""The beginning and the end of a round: lost and judged, closed as planned, formed anew when enough are ready."""

from __future__ import annotations

from typing import Literal

from llmtrain_operator import buddies, failure, incidents, membership, numerics, progress
from llmtrain_operator.api import FailureStatus, JobStatus, MemberStatus, RollbackStatus, RoundStatus, State
from llmtrain_operator.conditions import find, seconds, short, timestamp
from llmtrain_operator.contract import names
from llmtrain_operator.contract.wire import Failure, Member, Round
from llmtrain_operator.goodput import Cause
from llmtrain_operator.goodput.booking import lost as booked_as_lost
from llmtrain_operator.plan.aftermath import begin_incident, settle_cost
from llmtrain_operator.plan.avoid import give_way, guilty, hold_against
from llmtrain_operator.plan.blame import Blame, blame
from llmtrain_operator.plan.draft import Draft
from llmtrain_operator.plan.durable import say_whether_protected
from llmtrain_operator.plan.ends import finish
from llmtrain_operator.plan.flash import give_up, keepers, restorable, with_memory
from llmtrain_operator.plan.muster import Muster, muster, ready_of

MEMORY_PATIENCE = 30.0
"""Seconds that members are waited for without whom what is in memory cannot be restored, after the end of a round."""


def watch_silence(run: Draft) -> None:
    """Nothing happens when a silent member's time is up, so the pass that judges it has to be asked for."""
    left = membership.next_judgement(run.observed.agents)
    if left is not None:
        run.wake_in(left + 0.1)


def lose_round(run: Draft, current: Round, lost: tuple[membership.Loss, ...]) -> None:
    """End `current`, of which `lost` are gone, and judge what happened, which may end the job too."""
    found = blame(run, current, lost)
    verdict, back = _judged(run, found.cause)
    _record(run, found, verdict)
    suspects = guilty(run, found, lost)
    settle_cost(run)
    run.set(**booked_as_lost(run.status, run.observed.agents, run.now))
    begin_incident(run, current, found, lost, back)
    if back:
        run.set(rollbacks=(*run.status.rollbacks, back))
        if back.attempt > 1:
            give_up(run, back.to)
            say_whether_protected(run)
    _end(run, "Recovering", "restart", _goes_on_at(run))
    if verdict.fatal:
        finish(run, "Failed", verdict.reason, verdict.message)
        return
    run.set(restarts=run.status.restarts + 1)
    reason, text = ("RolledBack", f"{verdict.message}: {found}") if back else ("RoundLost", str(found))
    run.condition("Running", False, reason, text)
    run.condition("Recovering", True, reason, text)
    if back:
        run.tell("RolledBack", text, warning=True)
        return
    run.tell("MemberLost" if found.cause.reason == names.REASON_POD_LOST else "WorkerFailed", str(found), warning=True)
    hold_against(run, suspects, found.cause.reason)


def _judged(run: Draft, cause: Failure) -> tuple[failure.Verdict, RollbackStatus | None]:
    """What to do after `cause`; and where to go back to, if it is that training itself went wrong."""
    mode = run.spec.recovery.numerics
    if cause.reason in names.NUMERIC_REASONS and mode != "fail" and run.spec.entrypoint is None:
        ground = numerics.Ground(_goes_on_at(run), run.checkpoint_step)
        skip = mode == "rollbackAndSkip"
        back, words = numerics.judge(cause, run.status.rollbacks, ground, run.now, skip=skip)
        return failure.Verdict(back is None, cause.reason, words, 0.0, False, 1), back
    history = _history(run.status, run.now)
    knows_steps = run.spec.entrypoint is None or run.step > 0
    return failure.judge(cause, history, run.spec.recovery.max_restarts, knows_steps=knows_steps), None


def close_round(run: Draft) -> None:
    """End the round as was planned: its members have saved their state and left."""
    assert run.status.round is not None
    assert run.status.round.ending is not None
    ending = run.status.round.ending
    run.tell("RoundClosed", f"round {run.status.round.number} ended at step {run.step}: {ending.message}")
    at = _goes_on_at(run)
    cause: Cause = "drain" if ending.leaving else "resize"
    _end(run, "Resizing", cause, max(run.step, at or 0) if run.resumable or at is not None else None)
    run.condition("Running", False, ending.reason, ending.message)
    if ending.reason == "Resize":
        run.condition("Resizing", True, "NewRound", f"{ending.message}; a new round is about to begin")


def _goes_on_at(run: Draft) -> int | None:
    """The step that the next round goes on at, as far as is known; None: from the beginning."""
    known = [step for step in (run.checkpoint_step, restorable(run)) if step is not None]
    return max(known, default=None)


def _end(run: Draft, state: State, cause: Cause, goes_on_at: int | None) -> None:
    """`cause`: what the time goes to until the next round trains."""
    run.set(
        tally=run.status.tally.model_copy(update={"cause": cause}),
        state=state,
        round=None,
        best_step=max(run.status.best_step, run.step),
        progress=progress.between_rounds(run.status, goes_on_at, run.now),
        waiting_since=timestamp(run.now),
        pod_failures=0,
        stragglers=(),
    )


def _history(status: JobStatus, now: float) -> failure.History:
    last = status.last_failure
    if last is None:
        return failure.History(status.failures_counted, status.streak, None)
    calm_for = now - seconds(last.time) if last.time else 0.0
    known = Failure(last.reason, last.message, 0, last.rank, last.step)
    return failure.History(status.failures_counted, status.streak, known, calm_for)


def _record(run: Draft, found: Blame, verdict: failure.Verdict) -> None:
    cause, until = found.cause, timestamp(run.now + verdict.pause) if verdict.pause else None
    # Those who are left need not pause because pods are lost again and again, only the creation of more of them.
    pods = cause.reason == names.REASON_POD_LOST
    run.set(
        failures_counted=run.status.failures_counted + verdict.counts,
        streak=verdict.streak,
        not_before=None if pods else until,
        create_after=until if pods else run.status.create_after,
        last_failure=FailureStatus(
            reason=cause.reason,
            message=short(cause.message),
            traceback=cause.traceback[-4000:],
            member=found.member.index,
            rank=cause.rank,
            step=cause.step,
            exit_code=cause.exit_code,
            signal=cause.signal,
            time=timestamp(run.now),
        ),
    )


def await_round(run: Draft) -> None:
    """Form the next round if enough members are ready, else say what is missing."""
    if run.status.waiting_since is None:
        run.set(waiting_since=timestamp(run.now))
    if run.status.not_before and (left := seconds(run.status.not_before) - run.now) > 0:
        # The moment, not the time left: that would be another status with every pass.
        run.condition("Running", False, "BackingOff", f"repeated failures; pausing until {run.status.not_before}")
        run.wake_in(left)
        return
    there = muster(run)
    formation = _formation(run, there)
    run.set(tally=run.status.tally.model_copy(update={"doing": _waits_for(run, there)}))
    if formation.look_again is not None:
        run.wake_in(formation.look_again)
    if formation.members is None:
        run.condition("Running", False, "WaitingForMembers", formation.reason)
        _warn_of_shortage(run, there, formation.reason)
        if there.hopeless and len(there.ready) < run.spec.nodes.min:
            give_way(run, _waited(run))
        return
    keeping = keepers(run)  # also those that are not wanted
    ready = ready_of(run, tuple(pod for pod in run.observed.pods if pod.uid in keeping))
    members = with_memory(run, formation.members, ready)
    if members is None and _waited(run) < MEMORY_PATIENCE:
        run.condition("Running", False, "WaitingForMembers", "members that hold what is in memory are not ready yet")
        run.wake_in(MEMORY_PATIENCE - _waited(run))
        return
    more = len(members or ()) - len(formation.members)
    reason = f"{formation.reason}, and {more} more with what they hold in memory" if more > 0 else formation.reason
    _begin(run, members or formation.members, reason)


def _formation(run: Draft, there: Muster) -> membership.Formation:
    ready, waited = there.ready, _waited(run)
    if (run.resumable or restorable(run) is not None) and run.status.state in ("Recovering", "Resizing"):
        left = membership.REJOIN_PATIENCE - waited
        if there.reserved and left > 0:
            # They have their state at hand, and a spare would have to fetch it.
            ready = ready[: run.wanted - there.reserved]
            run.wake_in(left)
        # Whoever comes later is added then.
        waited = min(waited, there.settled_for)
        patience = membership.REJOIN_PATIENCE if there.returning else 0.0
    else:
        patience = membership.HOPELESS_PATIENCE if there.hopeless else membership.PATIENCE
    return membership.form(ready, run.wanted, run.spec.nodes.min, there.missing, waited, patience)


def _waits_for(run: Draft, there: Muster) -> Literal["preflight", "waiting", ""]:
    """What keeps a round from being formed, if it is more than members that are on their way."""
    if len(there.ready) >= run.spec.nodes.min:
        return ""
    if run.unproven:
        return "preflight"
    returns = run.status.state in ("Recovering", "Resizing") and _waited(run) >= membership.REJOIN_PATIENCE
    return "waiting" if there.hopeless or returns else ""


def _waited(run: Draft) -> float:
    assert run.status.waiting_since is not None
    return run.now - seconds(run.status.waiting_since)


def _warn_of_shortage(run: Draft, there: Muster, reason: str) -> None:
    """Say that a job that was running cannot go on for want of members, unless they are back within seconds."""
    if len(there.ready) >= run.spec.nodes.min or run.status.state not in ("Recovering", "Resizing"):
        return
    if (left := membership.REJOIN_PATIENCE - _waited(run)) > 0:
        run.wake_in(left)
        return
    before = find(run.status.conditions, "Recovering")
    run.set(state="Recovering")
    run.condition("Recovering", True, "BelowMinimum", reason)
    if before is None or before.reason != "BelowMinimum":
        run.tell("BelowMinimum", f"waiting: {reason}", warning=True)


def _place(run: Draft, node: str) -> buddies.Place:
    """Where it is, the widest domain first."""
    return (*run.observed.domains.get(node, ("", "")), node)


def _begin(run: Draft, chosen: tuple[Member, ...], reason: str) -> None:
    number, joined, pods = run.status.rounds + 1, {member.index for member in chosen}, run.pods
    nodes = [pods[member.uid].node for member in chosen]
    members = tuple(
        MemberStatus(
            index=m.index,
            incarnation=m.incarnation,
            pod=m.pod,
            uid=m.uid,
            node=node,
            host=m.host,
            store_port=m.store_port,
            flash_port=m.flash_port,
            buddies=found,
        )
        for m, node, found in zip(chosen, nodes, buddies.choose([_place(run, node) for node in nodes]), strict=True)
    )
    run.set(
        rounds=number,
        round=RoundStatus(
            number=number,
            procs_per_member=run.spec.nodes.proc_per_node,
            members=members,
            started_at=timestamp(run.now),
            reason=short(reason),
            wanted=run.wanted,
        ),
        waiting_since=None,
        not_before=None,
        pod_failures=0,
        rejections=tuple(known for known in run.status.rejections if known.index not in joined),
    )
    run.set(incidents=incidents.round_formed(run.status.incidents, run.now))
    run.tell("RoundStarted", f"round {number} with {len(members)} members: {reason}")
