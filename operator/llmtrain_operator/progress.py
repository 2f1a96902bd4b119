"""What the members say about training, as status: the newest progress, the time left, and what the time was spent on.

Pure. Only reports of the current round count, so that a member cut off earlier cannot turn the clock back.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any

from llmtrain_operator import goodput
from llmtrain_operator.api import JobStatus, ProgressStatus
from llmtrain_operator.conditions import seconds, timestamp
from llmtrain_operator.contract.wire import Progress
from llmtrain_operator.state import AgentView

BEFORE_TRAINING = frozenset({"loading", "restoring"})
"""Phases in which a worker does not yet know where training goes on."""


def said(status: JobStatus, agents: Mapping[str, AgentView]) -> list[Progress]:
    """What the members of the current round say of it, lowest rank first."""
    members = status.round.members if status.round else ()
    reports = (agent.report for member in members if (agent := agents.get(member.uid)) and agent.report)
    number = status.round.number if status.round else 0
    told = [report.progress for report in reports if report.progress and report.progress.round == number]
    return sorted(told, key=lambda progress: progress.rank)


def newest(status: JobStatus, agents: Mapping[str, AgentView], now: float) -> dict[str, Any]:
    """The status fields that follow from the members' newest progress; none if nothing changed."""
    told = said(status, agents)
    if not told:
        return {}
    old = status.progress
    fresh = _status(told[0], old.updated_at if old else timestamp(now))
    if old and fresh.phase in BEFORE_TRAINING and old.phase in BEFORE_TRAINING:
        fresh = fresh.model_copy(
            update={"step": max(fresh.step, old.step), "max_steps": fresh.max_steps or old.max_steps}
        )
    if fresh == old:
        return {}
    return {"progress": fresh.model_copy(update={"updated_at": timestamp(now)})}


def between_rounds(status: JobStatus, step: int | None, now: float) -> ProgressStatus | None:
    """What is shown until the next round's members speak, which goes on at `step`; None: from the beginning."""
    if step is None:
        return None
    max_steps = status.progress.max_steps if status.progress else 0
    return ProgressStatus(step=step, max_steps=max_steps, updated_at=timestamp(now))


def seconds_left(status: JobStatus) -> float | None:
    """The time that training will still take at its present pace; None if that is not known."""
    told = status.progress
    if told is None or not told.step_seconds or told.max_steps < told.step:
        return None
    return (told.max_steps - told.step) * told.step_seconds


def _status(said: Progress, updated_at: str | None) -> ProgressStatus:
    return ProgressStatus(
        step=said.step,
        max_steps=said.max_steps,
        loss=_short(said.loss),
        validation_loss=_short(said.validation_loss),
        perplexity=_short(said.perplexity),
        tokens_per_second=_short(said.tokens_per_second, 1),
        mfu=_short(said.mfu),
        learning_rate=_short(said.learning_rate, 12),
        gradient_norm=_short(said.gradient_norm),
        step_seconds=_short(said.step_seconds),
        phase=said.phase,
        eta=eta(said),
        updated_at=updated_at,
    )


def _short(value: float | None, digits: int = 4) -> float | None:
    """Enough digits for people; an infinite or undefined value has no JSON form and is left out."""
    return None if value is None or not isfinite(value) else round(value, digits)


def eta(said: Progress) -> str | None:
    """The time left at the present pace, as `3m12s`; None before a step was timed."""
    if not said.step_seconds or not isfinite(said.step_seconds) or said.max_steps < said.step:
        return None
    return duration((said.max_steps - said.step) * said.step_seconds)


def duration(length: float) -> str:
    """`length` seconds in at most two units: `12s`, `3m12s`, `5h07m`, `3d04h`."""
    whole = round(length)
    minutes, secs = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d{hours:02d}h"
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{secs:02d}s" if minutes else f"{secs}s"


_BEGUN_BY: Mapping[str, goodput.Cause] = {"Recovering": "restart", "Resizing": "resize"}
"""What a round that does not train yet was formed for, by the job's state."""


def cause_of(status: JobStatus, until: float) -> goodput.Cause:
    """What the time from the last booking to `until` went to, judged by what the status said then."""
    if status.state == "Suspended":
        return "suspended"
    if status.not_before and until <= seconds(status.not_before):
        return "backoff"
    if status.round is None:
        return "resize" if status.state == "Resizing" else "waiting" if status.rounds else "starting"
    phase = status.progress.phase if status.progress else "loading"
    if phase in BEFORE_TRAINING:
        return _BEGUN_BY.get(status.state, "starting")
    if phase == "saving":
        return "resize" if status.state == "Resizing" else "save"
    if phase in ("exporting", "done"):
        return "export"
    return _training_cause(status)


def booked(status: JobStatus, cause: goodput.Cause, now: float) -> dict[str, Any]:
    """The ledger's status fields with the time since the last booking booked to `cause`."""
    if status.ledger_time is None:
        return {"ledger_time": timestamp(now)}
    passed = now - seconds(status.ledger_time)
    if passed <= 0:
        return {}
    return {**_shown(goodput.book(status.ledger, cause, passed)), "ledger_time": timestamp(now)}


def unnoticed(status: JobStatus, now: float) -> dict[str, Any]:
    """The ledger's status fields when a round turns out to be lost: since its last step, and the one in progress, no
    more was done, though it seemed to train."""
    told = status.progress
    if told is None or told.updated_at is None or told.phase in BEFORE_TRAINING:
        return {}
    idle = now - seconds(told.updated_at) - (told.step_seconds or 0.0)
    return _shown(goodput.moved(status.ledger, _training_cause(status), "detect", idle))


def _training_cause(status: JobStatus) -> goodput.Cause:
    return "recompute" if status.progress and status.progress.step < status.best_step else "productive"


def _shown(ledger: Mapping[str, float]) -> dict[str, Any]:
    share = goodput.goodput(ledger)
    return {
        "ledger": {name: round(value, 3) for name, value in ledger.items()},
        "goodput": None if share is None else f"{share:.1%}",
    }
