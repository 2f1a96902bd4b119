"""What the members say about training, as status: the newest progress, and the time left.

Pure. Only reports of the current round count, so that a member cut off earlier cannot turn the clock back.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any

from llmtrain_operator.api import JobStatus, ProgressStatus
from llmtrain_operator.conditions import timestamp
from llmtrain_operator.contract.wire import BEFORE_TRAINING, Progress
from llmtrain_operator.state import AgentView


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
