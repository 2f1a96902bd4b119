"""The ends of a job and its pauses: finished, invalid, suspended."""

from __future__ import annotations

from typing import Final, Literal

from llmtrain_operator.api.validation import Problem
from llmtrain_operator.conditions import ConditionType, find, seconds, short, timestamp
from llmtrain_operator.contract import names
from llmtrain_operator.contract.wire import BEFORE_TRAINING
from llmtrain_operator.plan.aftermath import end_incident
from llmtrain_operator.plan.draft import Draft
from llmtrain_operator.plan.flash import last_gasp
from llmtrain_operator.progress import between_rounds
from llmtrain_operator.state import DeleteJob, DeletePod

MOST_SHOWN = 120
"""Characters of a wrong value that are repeated to the user."""
STOP_PATIENCE = 120.0
"""Seconds after the end within which members stop by themselves; then their pods are deleted."""
ACTIVITIES: Final[tuple[ConditionType, ...]] = ("Running", "Recovering", "Resizing", "Degraded", "Straggling")
"""Conditions that do not hold while the job is over or suspended."""


def finished(run: Draft) -> None:
    assert run.status.completion_time is not None
    since = run.now - seconds(run.status.completion_time)
    run.instruct_all("stop", f"the job is {run.status.state}", last_gasp(run))
    lingering = [pod for pod in run.observed.pods if pod.usable]
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


def finish(run: Draft, state: Literal["Complete", "Failed"], reason: str, message: str) -> None:
    run.set(
        state=state, completion_time=timestamp(run.now), spares=None, stragglers=(), waiting_since=None, not_before=None
    )
    end_incident(run, state)
    for kind in ACTIVITIES:
        run.condition(kind, False, reason, message)
    run.condition(state, True, reason, message)
    run.tell(reason if state == "Failed" else "Completed", message, warning=state == "Failed")
    finished(run)


def judge(run: Draft, problems: tuple[Problem, ...]) -> None:
    """Say whether the spec is valid."""
    if not problems:
        run.condition("Valid", True, "SpecAccepted", "the spec is valid")
        return
    message = short("; ".join(f"{p.path}: {p.message} (is {_shown(p.value)}). {p.remedy}" for p in problems))
    before = find(run.status.conditions, "Valid")
    run.condition("Valid", False, "InvalidSpec", message)
    if before is None or before.message != message:
        run.tell("InvalidSpec", message, warning=True)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def suspending(run: Draft) -> bool:
    """Whether the job is to be suspended, and may be at once. One with durable storage saves first: see `resize`."""
    if not run.spec.suspend:
        return False
    if run.status.round is None or names.ANNOTATION_DISCARD_PROGRESS in run.job.annotations:
        return True
    told = run.status.progress
    if told is None or told.phase in BEFORE_TRAINING or (told.step == 0 and not run.resumable):
        return True  # nothing is lost
    if not run.resumable:
        run.condition(
            "Suspended",
            False,
            "ProgressWouldBeLost",
            "the job has trained and has no durable storage to save that in. To suspend it all the same, annotate it "
            f"with {names.ANNOTATION_DISCARD_PROGRESS}=true (llmtrain suspend --discard-progress)",
        )
    return False


def suspend(run: Draft) -> None:
    if run.status.state != "Suspended":
        run.tell("Suspended", "stopping all members; spec.suspend is true")
    end_incident(run, "Suspended")
    if run.status.round is not None:
        run.set(round=None, progress=between_rounds(run.status, run.checkpoint_step, run.now))
    run.set(state="Suspended", nodes="0", spares=None, stragglers=(), waiting_since=None, not_before=None)
    run.condition("Suspended", True, "SuspendRequested", "spec.suspend is true")
    for kind in ("Scheduled", *ACTIVITIES):
        run.condition(kind, False, "Suspended", "the job is suspended")
    run.instruct_all("stop", "the job is suspended", last_gasp(run))
    run.actions += _delete_all(run, "the job is suspended")


def dismiss(run: Draft) -> None:
    """The spec is invalid and no round runs. The job is Invalid, and its spec may be mended in every field, only when
    no pod is left that was made by the spec as it is: it would train by that among others made by the mended one."""
    run.set(nodes="0", spares=None)
    away = _delete_all(run, "the job's spec is invalid")
    run.actions += away
    if not away:
        run.set(state="Invalid")


def _delete_all(run: Draft, why: str) -> list[DeletePod]:
    return [DeletePod(pod.name, pod.uid, why) for pod in run.observed.pods if not pod.deleting]
