"""What the page shows, made from job objects and their pods: a row for each job, and everything about one. Pure.

The shapes are the wire format between server and page; the scripts in `page/` read these names in camelCase.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal

from pydantic import ValidationError

from llmtrain_operator.api import (
    Condition,
    FailureStatus,
    HistoryStatus,
    IncidentStatus,
    JobStatus,
    SegmentStatus,
)
from llmtrain_operator.cli.report import JobReport, report, seconds
from llmtrain_operator.cli.view import count, number, pod_state
from llmtrain_operator.dashboard.series import Point, Shape, extended, joined
from llmtrain_operator.state import PodView

Tone = Literal["good", "busy", "bad", "idle"]

_TONES: Final[Mapping[str, Tone]] = {
    "Running": "good",
    "Complete": "good",
    "Failed": "bad",
    "Invalid": "bad",
    "Starting": "busy",
    "Recovering": "busy",
    "Resizing": "busy",
}
# Conditions that are bad news while they have this status.
_BAD: Final = {
    "Valid": "False",
    "Scheduled": "False",
    "Durable": "False",
    "Protected": "False",
    "ObjectivesMet": "False",
    "PreflightPassed": "False",
    "Fits": "False",
    "Tracked": "False",
    "Degraded": "True",
    "Straggling": "True",
}
# Those that still matter when nothing trains any more.
_LASTING: Final = frozenset({"Valid", "ObjectivesMet", "Failed"})


class Judged(Shape):
    """A condition, and whether somebody should look at it."""

    type: str
    status: str
    reason: str
    message: str
    since: str
    bad: bool


class JobRow(Shape):
    """A job in the list. `created` is in seconds since 1970; `max_steps` is 0 if nobody knows."""

    key: str
    namespace: str
    name: str
    created: float
    state: str
    tone: Tone
    ended: bool = False
    nodes: str = ""
    step: int = 0
    max_steps: int = 0
    loss: float | None = None
    eta: str = ""
    goodput: str = ""
    restarts: int = 0
    bad: tuple[Judged, ...] = ()


class Member(Shape):
    """A pod of the job. `rank` is None for one that is not in the round; `buddies` are indexes of members."""

    index: int
    rank: int | None
    pod: str
    node: str
    state: str
    tone: Tone
    buddies: tuple[int, ...] = ()


class Fact(Shape):
    """A figure with its name, for people."""

    name: str
    value: str


class JobPage(Shape):
    """Everything about one job. `started` is in seconds since 1970, `ledger` in seconds by cause."""

    row: JobRow
    started: float | None = None
    facts: tuple[Fact, ...] = ()
    conditions: tuple[Judged, ...] = ()
    members: tuple[Member, ...] = ()
    incidents: tuple[IncidentStatus, ...] = ()
    failure: FailureStatus | None = None
    ledger: Mapping[str, float] = {}
    timeline: tuple[SegmentStatus, ...] = ()
    history: tuple[Point, ...] = ()


def key_of(job: Mapping[str, Any]) -> str:
    """`namespace/name`."""
    return f"{job['metadata']['namespace']}/{job['metadata']['name']}"


def row(job: Mapping[str, Any]) -> JobRow:
    """The job's row; a job that this version cannot read says so in it."""
    try:
        return _row(report(job))
    except ValueError as error:
        return _unreadable(job, str(error))


def page(job: Mapping[str, Any], pods: Iterable[PodView] = (), seen: Sequence[Point] = ()) -> JobPage:
    """The job's page; `seen` is the curve as far as this server has looked on."""
    try:
        each = report(job, pods)
    except ValueError as error:
        return JobPage(row=_unreadable(job, str(error)))
    status = each.status
    return JobPage(
        row=_row(each),
        started=seconds(status.start_time) if status.start_time else None,
        facts=tuple(Fact(name=name, value=value) for name, value in _facts(status) if value),
        conditions=_conditions(each),
        members=tuple(_members(each)),
        incidents=status.incidents,
        failure=status.last_failure,
        ledger=status.ledger,
        timeline=status.timeline,
        history=joined(_recorded(status.history), seen),
    )


def point(job: Mapping[str, Any]) -> Point | None:
    """Where the job's curve is now; None while there is nothing to draw."""
    told = (job.get("status") or {}).get("progress") or {}
    try:
        found = Point.model_validate({name: told.get(name) for name in ("step", "loss", "stepSeconds")})
    except ValidationError:
        return None
    return found if found.step and found.loss is not None else None


def _row(each: JobReport) -> JobRow:
    status, progress = each.status, each.status.progress
    return JobRow(
        key=f"{each.namespace}/{each.name}",
        namespace=each.namespace,
        name=each.name,
        created=each.created,
        state=each.state,
        tone=_TONES.get(each.state, "idle"),
        ended=each.ended,
        nodes=status.nodes,
        step=each.step,
        max_steps=each.max_steps,
        loss=progress.loss if progress else None,
        eta=(progress.eta or "") if progress and not each.ended else "",
        goodput=status.goodput or "",
        restarts=status.restarts,
        bad=tuple(one for one in _conditions(each) if one.bad),
    )


def _unreadable(job: Mapping[str, Any], why: str) -> JobRow:
    metadata = job["metadata"]
    return JobRow(
        key=key_of(job),
        namespace=metadata["namespace"],
        name=metadata["name"],
        created=seconds(metadata["creationTimestamp"]),
        state="Unreadable",
        tone="bad",
        bad=(Judged(type="Valid", status="Unknown", reason="Unreadable", message=why, since="", bad=True),),
    )


def _conditions(each: JobReport) -> tuple[Judged, ...]:
    over = each.ended or each.suspended
    return tuple(_judged(one, over=over) for one in each.status.conditions)


def _judged(one: Condition, *, over: bool) -> Judged:
    failed = (one.type, one.status) == ("Failed", "True")
    bad = failed or (_BAD.get(one.type) == one.status and (not over or one.type in _LASTING))
    return Judged(
        type=one.type,
        status=one.status,
        reason=one.reason,
        message=one.message,
        since=one.last_transition_time,
        bad=bad,
    )


def _facts(status: JobStatus) -> Iterator[tuple[str, str]]:
    if told := status.progress:
        yield "phase", told.phase if told.phase != "training" else ""
        yield "loss", number(told.loss)
        yield "validation loss", number(told.validation_loss)
        yield "perplexity", number(told.perplexity)
        yield "seconds per step", number(told.step_seconds)
        yield "tokens per second", count(told.tokens_per_second)
        yield "learning rate", number(told.learning_rate)
        yield "gradient norm", number(told.gradient_norm)
        yield "MFU", f"{told.mfu:.1%}" if told.mfu else ""
    yield "goodput", status.goodput or ""
    yield "spares ready", "" if status.spares is None else str(status.spares)
    if status.flash and status.flash.committed_step is not None:
        yield "safe in memory up to step", count(status.flash.committed_step)
    if status.checkpoint and status.checkpoint.step is not None:
        yield "safe in storage up to step", count(status.checkpoint.step)


def _members(each: JobReport) -> Iterator[Member]:
    """The pods that live, in order of index; of a job that is over, its last ones."""
    current = each.status.round.members if each.status.round else ()
    ranks = {member.uid: rank for rank, member in enumerate(current)}
    for pod in each.pods:
        rank = ranks.get(pod.uid)
        if rank is None and pod.ended and not each.ended:
            continue
        buddies = current[rank].buddies if rank is not None else ()
        yield Member(
            index=pod.index,
            rank=rank,
            pod=pod.name,
            node=pod.node,
            state=pod_state(pod),
            tone=_member_tone(pod),
            buddies=tuple(current[buddy].index for buddy in buddies if buddy < len(current)),
        )


def _member_tone(pod: PodView) -> Tone:
    if pod.phase == "Failed":
        return "bad"
    if pod.deleting or pod.phase == "Pending":
        return "busy"
    return "idle" if pod.phase == "Succeeded" else "good"


def _recorded(history: HistoryStatus | None) -> tuple[Point, ...]:
    """What the operator has recorded, as a curve over steps: what was done again counts as it went the last time."""
    curve: tuple[Point, ...] = ()
    if history:
        for step, loss, length in zip(history.steps, history.losses, history.step_seconds, strict=False):
            curve = extended(curve, Point(step=step, loss=loss, step_seconds=length))
    return curve
