"""Which fault comes next, to whom and when, and what is to be said of it afterwards.

Pure, and the same on every machine for the same seed: draws are hashes of the seed, the number of the blow and what is
drawn, so that one more draw changes no other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from llmtrain_operator.api import IncidentStatus, JobSpec, JobStatus, MemberStatus
from llmtrain_operator.chaos.faults import Fault
from llmtrain_operator.chaos.survival import why_not, why_not_yet

_HURRIED: Final = 0.2
"""Share of the blows that do not wait for the job to have got over the one before."""


@dataclass(frozen=True, slots=True)
class Blow:
    """One fault. The first of `faults` that the job can bear is done, `pause` seconds after it trains again; one that
    is `hurried` comes so long after the blow before. `luck` (0 to 1) says which member."""

    number: int
    faults: tuple[Fault, ...]
    luck: float
    pause: float
    hurried: bool


def plan(seed: int, count: int, faults: Sequence[Fault], spread: float) -> tuple[Blow, ...]:
    """`count` blows of these kinds, at most `spread` seconds apart from what they wait for."""
    return tuple(_blow(seed, number, faults, spread) for number in range(1, count + 1))


def _blow(seed: int, number: int, faults: Sequence[Fault], spread: float) -> Blow:
    order = sorted(faults, key=lambda fault: _draw(seed, number, fault.name))
    hurried = number > 1 and _draw(seed, number, "hurry") < _HURRIED
    pause = spread * _draw(seed, number, "pause")
    return Blow(number, tuple(order), _draw(seed, number, "member"), pause, hurried)


def _draw(seed: int, number: int, what: str) -> float:
    digest = hashlib.sha256(f"{seed}/{number}/{what}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def groups(blows: Sequence[Blow]) -> list[list[Blow]]:
    """Each blow that waits, with the hurried ones after it: what is judged together."""
    found: list[list[Blow]] = []
    for blow in blows:
        if blow.hurried and found:
            found[-1].append(blow)
        else:
            found.append([blow])
    return found


def choose(blow: Blow, spec: JobSpec, status: JobStatus, *, unsafe: bool = False) -> tuple[Fault | None, str]:
    """The first fault of the blow that the job can bear (`unsafe`: the first), with what speaks against the others.

    While it recovers from the blow before, nothing may be taken away that others may be reading.
    """
    refusals = []
    for fault in blow.faults:
        refusal = None if unsafe else _why_not_now(fault, blow, spec, status)
        if refusal is None:
            return fault, ""
        refusals.append(f"{fault.name}: {refusal}")
    return None, "; ".join(refusals)


def _why_not_now(fault: Fault, blow: Blow, spec: JobSpec, status: JobStatus) -> str | None:
    if blow.hurried and (fault.takes != "worker" or fault.name == "corrupt-snapshot"):
        return "the job may be recovering from what it would take"
    return why_not(fault, spec, status)


def victim(luck: float, status: JobStatus, member: int | None) -> MemberStatus | None:
    """The member of the round that it falls on, or the one with this index; None if there is none."""
    members = status.round.members if status.round else ()
    chosen = [each for each in members if member in (None, each.index)]
    return chosen[min(int(luck * len(chosen)), len(chosen) - 1)] if chosen else None


def since(status: JobStatus, number: int) -> tuple[IncidentStatus, ...]:
    """The incidents after this one."""
    return tuple(each for each in status.incidents if each.number > number)


def last_number(status: JobStatus) -> int:
    """The newest incident's, 0 if there was none."""
    return status.incidents[-1].number if status.incidents else 0


def is_over(faults: Sequence[Fault], spec: JobSpec, before: JobStatus, status: JobStatus) -> bool:
    """Whether the job has got over these faults, done when its status was `before`, or has ended."""
    if status.completion_time:
        return True
    if any(fault.ends_round for fault in faults) and not since(status, last_number(before)):
        return False
    return why_not_yet(spec, status) is None and _steps(status) > _steps(before)


def all_told(faults: Sequence[Fault], before: JobStatus, status: JobStatus) -> bool:
    """Whether as many faults as these are on record. One that came into the recovery from another may never be: what it
    struck was about to end."""
    told = sum(each.faults for each in since(status, last_number(before)))
    return status.completion_time is not None or told >= sum(fault.ends_round for fault in faults)


def wrongs(faults: Sequence[Fault], before: JobStatus, status: JobStatus, *, over: bool) -> list[str]:
    """What should not have come of these faults, in words; `over`: the job has got over them, or has ended."""
    found = []
    incidents = since(status, last_number(before))
    if status.state == "Failed":
        told = status.last_failure
        found.append(f"the job failed: {told.reason}: {told.message}" if told else "the job failed")
    found += [f"incident {one.number}: {one.lost_steps} committed steps lost" for one in incidents if one.lost_steps]
    if not over and any(fault.ends_round for fault in faults) and not incidents:
        found.append("nobody noticed")
    elif not over:
        found.append("the job did not get over it")
    return found


def _steps(status: JobStatus) -> int:
    return max(status.best_step, status.progress.step if status.progress else 0)
