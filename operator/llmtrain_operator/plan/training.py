"""A job that trains: its round is kept, lost or formed; pods and directives follow from it."""

from __future__ import annotations

from dataclasses import replace

from llmtrain_operator import failure, membership, podset, progress
from llmtrain_operator.api import FailureStatus
from llmtrain_operator.conditions import seconds, timestamp
from llmtrain_operator.contract.wire import Round
from llmtrain_operator.goodput.history import taken
from llmtrain_operator.plan.autoscale import steer
from llmtrain_operator.plan.avoid import avoided, expire, hold_against
from llmtrain_operator.plan.blame import settling
from llmtrain_operator.plan.departure import note_departures
from llmtrain_operator.plan.describe import describe
from llmtrain_operator.plan.directives import direct
from llmtrain_operator.plan.draft import Draft
from llmtrain_operator.plan.durable import note_checkpoints
from llmtrain_operator.plan.ends import dismiss, finish, suspend
from llmtrain_operator.plan.fits import say_whether_it_fits
from llmtrain_operator.plan.flash import keepers, note_flash
from llmtrain_operator.plan.muster import held_back
from llmtrain_operator.plan.placement import regroup, say_whether_scheduled
from llmtrain_operator.plan.preflight import inspect, resting
from llmtrain_operator.plan.resize import decide, drained, left, over, part
from llmtrain_operator.plan.rounds import await_round, close_round, lose_round, watch_silence
from llmtrain_operator.plan.stragglers import note_stragglers, replace_straggler, say_whether_straggling
from llmtrain_operator.plan.tracking import note_tracking
from llmtrain_operator.state import ApplyChildren, FillDesired, PodView

_UNHEARD_GRACE = 1
"""Seconds for the end of a pod whose agent is silent: it hears nobody, has left its round, and holds a place that its
successor may need. Not 0: Kubernetes would forget it without having heard from its node."""


def go_on(run: Draft) -> None:
    """The spec has become invalid, by an edit or in the eyes of a newer operator: the round that runs goes on as it
    was created, up to its end, and no other is formed."""
    _take_in(run)
    if run.round:
        _follow(run)
    if run.status.completion_time:
        return
    if run.round and run.spec.suspend and run.resumable:
        decide(run)
    if run.round is None and run.spec.suspend:
        suspend(run)
        return
    watch_silence(run)
    say_whether_straggling(run)
    direct(run)
    if run.round:
        describe(run)
    else:
        dismiss(run)


def train(run: Draft) -> None:
    """Everything that brings the job nearer to its end."""
    if run.status.state == "Suspended":
        run.tell("Resumed", "spec.suspend is false")
    if not run.spec.suspend:
        run.condition("Suspended", False, "NotSuspended", "spec.suspend is false")
    if not run.observed.children_applied:
        run.actions.append(ApplyChildren())
    if run.spec.nodes.desired is None:
        run.actions.append(FillDesired(run.spec.nodes.maximum))
    say_whether_it_fits(run)
    expire(run)
    _take_in(run)
    note_departures(run)
    _early_ends(run)
    inspect(run)
    if run.round and not run.status.completion_time:
        _follow(run)
    if run.status.completion_time:
        return
    if run.round is None and run.spec.suspend:
        suspend(run)
        return
    steer(run)
    if run.round is None:
        await_round(run)
    decide(run)
    replace_straggler(run)
    say_whether_straggling(run)
    _arrange(run)
    watch_silence(run)
    direct(run)
    describe(run)


def _take_in(run: Draft) -> None:
    """What the members say of training."""
    note_flash(run)
    note_checkpoints(run)
    run.set(**progress.newest(run.status, run.observed.agents, run.now))
    if run.status.progress and run.status.start_time:
        lived = run.now - seconds(run.status.start_time)
        run.set(history=taken(run.status.history, run.status.progress, lived))
    note_stragglers(run)
    note_tracking(run)


def _follow(run: Draft) -> None:
    """See whether the round has come to its end, good or bad."""
    current = run.round
    assert current is not None
    done = _note_successes(run, current)
    if len(done) == len(current.members):
        text = f"all {len(current.members)} members finished after step {run.step}"
        finish(run, "Complete", "TrainingComplete", text)
        return
    part(run, current)
    away = done | left(run, current) | drained(run, current)
    lost = membership.losses(current, run.pods, run.observed.agents, away)
    if over(run, current, done, lost):
        close_round(run)
    elif lost and not settling(run, current, lost):
        lose_round(run, current, lost)
    else:
        return
    run.note_ended(loss.member.uid for loss in lost if not loss.failed)


def _note_successes(run: Draft, current: Round) -> frozenset[str]:
    """UIDs of the members that have succeeded; on record, because their pods may go before the others are done."""
    assert run.status.round is not None
    seen = membership.succeeded(current, run.pods, run.observed.agents)
    members = tuple(m.model_copy(update={"succeeded": m.succeeded or m.uid in seen}) for m in run.status.round.members)
    run.set(round=run.status.round.model_copy(update={"members": members}))
    return frozenset(member.uid for member in members if member.succeeded)


def _arrange(run: Draft) -> None:
    stored = run.status.round
    # Between rounds nobody goes who may be needed for what is in memory.
    in_round = {member.uid for member in stored.members} if stored else set(keepers(run) - run.departing.keys())
    given_up = {uid: why for uid, why in run.given_up.items() if uid not in in_round}
    done = {member.index for member in stored.members if member.succeeded} if stored else set()
    none_now = held_back(run) or run.observed.obstacle is not None
    refused = set(run.indexes) if none_now else done | run.observed.refused.keys() | resting(run)
    pods = podset.arrange(regroup(run), run.indexes, in_round, run.status.incarnations, refused, given_up)
    run.set(incarnations=dict(pods.incarnations), target_nodes=run.wanted)
    unheard = membership.unheard(run.observed.agents)
    run.actions += [replace(each, grace=_UNHEARD_GRACE) if each.uid in unheard else each for each in pods.delete]
    run.actions += [replace(create, avoid=avoided(run)) for create in pods.create]
    say_whether_scheduled(run)


def _early_ends(run: Draft) -> None:
    """Take note of pods that ended without ever being in a round; a job that has none may fail over them. A spare's end
    only delays the next one: what happened to the members stays on record as the last failure."""
    in_round = {member.uid for member in run.status.round.members} if run.status.round else set()
    ended = [pod for pod in run.observed.pods if pod.phase == "Failed" and not pod.deleting]
    ended = [pod for pod in ended if pod.uid not in in_round and pod.uid not in run.status.ended_pods]
    run.note_ended(pod.uid for pod in ended)
    early = [pod for pod in ended if not _was_told_to_end(run, pod)]
    if not early:
        return
    for each in early:
        if each.reason not in podset.TAKEN_AWAY and each.reason != "OOMKilled":
            hold_against(run, [each.node], each.reason or "PodFailed")
    count = run.status.pod_failures + 1
    pod = early[0]
    text = f"{pod.name} ended before it could join: {pod.reason}: {pod.message or 'no message'}"
    pause = failure.pause(count)
    run.set(pod_failures=count, create_after=timestamp(run.now + pause) if pause else None)
    if not run.whole:
        run.set(last_failure=_end_of(pod, run.now))
    if count > run.spec.recovery.max_restarts and pod.reason in podset.OWN_ENDS and not in_round:
        finish(run, "Failed", "PodsFailing", f"{count} times in a row a pod ended too soon; last: {text}")
    else:
        run.tell("PodFailed", text, warning=True)


def _end_of(pod: PodView, now: float) -> FailureStatus:
    return FailureStatus(
        reason=pod.reason or "PodFailed",
        message=pod.message,
        member=pod.index,
        exit_code=pod.exit_code,
        time=timestamp(now),
    )


def _was_told_to_end(run: Draft, pod: PodView) -> bool:
    """By its node, most likely, which shuts down: no fault of the pod's."""
    agent = run.observed.agents.get(pod.uid)
    return agent is not None and agent.report is not None and bool(agent.report.leaving)
