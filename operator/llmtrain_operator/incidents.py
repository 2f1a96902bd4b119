"""What a lost round cost: its timeline from the fault to the next step, and whether that keeps what was promised.

Pure. An incident begins with the loss of a round and ends with the first step of the next one that trains; what is lost
on the way there belongs to it. Times are as the controller sees them: a fault is dated by the last sign of life of
whoever was lost, and a step by the report that tells of it, which comes within half a second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from llmtrain_operator import quantity
from llmtrain_operator.api import IncidentStatus, Objectives
from llmtrain_operator.conditions import seconds, timestamp
from llmtrain_operator.contract import names

KEPT: Final = 10
"""Incidents that stay in the status."""

OTHER: Final = "Other"
"""What an incident is counted as whose reason is none of ours, so that there is an end to them."""

Incidents = tuple[IncidentStatus, ...]
"""The newest last."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What ended round `round`: `ago` seconds before it was noticed. `committed`: the step that was safe by then.

    `back_to`: the step that training was taken back to on purpose; what was done after it is given up, not lost.
    """

    round: int
    reason: str
    message: str
    member: int
    ago: float
    committed: int
    back_to: int | None = None


def begun(incidents: Incidents, fault: Fault, now: float) -> Incidents:
    """With the fault: an incident of its own, or one more fault of the one that is not over yet."""
    if last := _open(incidents):
        safe = _kept(last.committed_step, fault)
        return _with(incidents, last, faults=last.faults + 1, round_seconds=None, committed_step=safe)
    made = IncidentStatus(
        number=incidents[-1].number + 1 if incidents else 1,
        time=timestamp(now - fault.ago),
        kind="node" if fault.reason == names.REASON_POD_LOST else "process",
        reason=fault.reason,
        message=fault.message,
        member=fault.member,
        round=fault.round,
        committed_step=_kept(fault.committed, fault),
        detect_seconds=round(fault.ago, 3),
    )
    return (*incidents, made)[-KEPT:]


def round_formed(incidents: Incidents, now: float) -> Incidents:
    """The next round is published."""
    last = _open(incidents)
    return _with(incidents, last, round_seconds=_since(last, now)) if last else incidents


def trains(incidents: Incidents, restored: int | None, now: float) -> Incidents:
    """The next round has taken a step, from step `restored` on (None: nobody knows)."""
    last = _open(incidents)
    if last is None:
        return incidents
    lost = None if restored is None else max(0, last.committed_step - restored)
    return _with(incidents, last, train_seconds=_since(last, now), lost_steps=lost, outcome="Recovered")


def ended(incidents: Incidents, outcome: Literal["Suspended", "Complete", "Failed"]) -> Incidents:
    """The job is held, or has come to its end, before it trained again."""
    last = _open(incidents)
    return _with(incidents, last, outcome=outcome) if last else incidents


def tally(counts: Mapping[str, int], over: IncidentStatus) -> dict[str, int]:
    """`counts`, by reason, with an incident that is over."""
    reason = over.reason if over.reason in names.REASONS else OTHER
    return {**counts, reason: counts.get(reason, 0) + 1}


def broken(incident: IncidentStatus, objectives: Objectives) -> list[str]:
    """The promises that an incident which is over has broken, in words."""
    if incident.outcome == "Failed":
        return ["the job did not recover"]
    found = []
    promised = objectives.node if incident.kind == "node" else objectives.process
    took = incident.train_seconds or 0.0
    if promised is not None and took > quantity.seconds(promised):
        found.append(f"{took:.1f} s without training ({incident.kind}: {promised})")
    if objectives.lost_steps is not None and (incident.lost_steps or 0) > objectives.lost_steps:
        found.append(f"{incident.lost_steps} committed steps lost (lostSteps: {objectives.lost_steps})")
    return found


def told(incident: IncidentStatus) -> str:
    """The timeline of one that is over, in one line."""
    parts = [
        f"noticed {incident.detect_seconds:.1f} s after the fault",
        "" if incident.round_seconds is None else f"next round after {incident.round_seconds:.1f} s",
        f"training again after {incident.train_seconds or 0.0:.1f} s",
        "lost steps unknown" if incident.lost_steps is None else f"{incident.lost_steps} committed steps lost",
        "" if incident.faults == 1 else f"{incident.faults} faults",
    ]
    return ", ".join(part for part in parts if part)


def _open(incidents: Sequence[IncidentStatus]) -> IncidentStatus | None:
    return incidents[-1] if incidents and not incidents[-1].outcome else None


def _kept(committed: int, fault: Fault) -> int:
    return committed if fault.back_to is None else min(committed, fault.back_to)


def _since(incident: IncidentStatus, now: float) -> float:
    return round(max(0.0, now - seconds(incident.time)), 3)


def _with(incidents: Incidents, last: IncidentStatus, **values: float | str | None) -> Incidents:
    return (*incidents[:-1], last.model_copy(update=values))
