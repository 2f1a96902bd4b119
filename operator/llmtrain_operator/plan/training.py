"""A job that trains: its round is kept, lost or formed; pods and directives follow from it."""

from __future__ import annotations

from llmtrain_operator import failure, membership, podset, progress
from llmtrain_operator.api import FailureStatus
from llmtrain_operator.conditions import timestamp
from llmtrain_operator.plan.describe import describe
from llmtrain_operator.plan.directives import direct
from llmtrain_operator.plan.draft import Draft
from llmtrain_operator.plan.ends import finish
from llmtrain_operator.plan.rounds import await_round, held_back, lose_round, watch_silence
from llmtrain_operator.state import ApplyChildren, FillDesired


def train(run: Draft) -> None:
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
    current = run.round
    if current and membership.succeeded(current, run.pods, run.observed.agents):
        run.set(**progress.newest(run.status, run.observed.agents, run.now))
        steps = run.status.progress.step if run.status.progress else 0
        finish(run, "Complete", "TrainingComplete", f"all {len(current.members)} members finished after step {steps}")
        return
    if current and (lost := membership.losses(current, run.pods, run.observed.agents)):
        if lose_round(run, current, lost):
            return
        current = None
    elif current is None and _early_ends(run):
        return
    if current is None:
        await_round(run)
    else:
        watch_silence(run, current)
    _arrange(run)
    direct(run)
    describe(run)


def _arrange(run: Draft) -> None:
    current = run.round
    in_round = {member.uid for member in current.members} if current else set()
    refused = set(range(run.wanted)) if held_back(run) else run.observed.refused
    pods = podset.arrange(run.observed.pods, run.wanted, in_round, run.status.incarnations, refused)
    run.set(incarnations=dict(pods.incarnations), target_nodes=run.wanted)
    run.actions += [*pods.delete, *pods.create]


def _early_ends(run: Draft) -> bool:
    """Take note of pods that ended without ever being in a round; say whether the job fails over them."""
    early = [pod for pod in run.observed.pods if pod.phase == "Failed" and not pod.deleting]
    if not early:
        return False
    count = run.status.pod_failures + 1
    pod = early[0]
    text = f"{pod.name} ended before it could join: {pod.reason}: {pod.message or 'no message'}"
    pause = 0.0 if count == 1 else min(failure.BACKOFF_LIMIT, failure.BACKOFF_FIRST * 2.0 ** (count - 1))
    run.set(
        pod_failures=count,
        create_after=timestamp(run.now + pause) if pause else None,
        last_failure=FailureStatus(
            reason=pod.reason or "PodFailed",
            message=pod.message,
            member=pod.index,
            exit_code=pod.exit_code,
            time=timestamp(run.now),
        ),
    )
    if count > run.spec.recovery.max_restarts and pod.reason in podset.OWN_ENDS:
        finish(run, "Failed", "PodsFailing", f"{count} times in a row a pod ended too soon; last: {text}")
        return True
    run.tell("PodFailed", text, warning=True)
    return False
