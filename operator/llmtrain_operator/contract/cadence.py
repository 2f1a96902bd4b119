"""How often to take a snapshot, to make copies, and to persist. Pure.

A number in the spec is obeyed. `auto` weighs what a snapshot costs against what it saves: Young and Daly's interval,
sqrt(2 x cost x mean time between failures), spreads both evenly; and whatever that says, snapshots may take no more
than a share of the time. Spaced out is not skipped: the interval is told, with the reason.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

MTBF: Final = 4 * 3600.0
"""Mean seconds between failures of a job of which nothing is known yet."""

Every = int | Literal["auto"]


@dataclass(frozen=True, slots=True)
class Measured:
    """Medians in seconds: a step, the stall of a snapshot, and a snapshot's way to its buddies (None: not known yet).

    `mtbf`: mean seconds between failures of this job (None: it had none yet).
    """

    step: float | None = None
    stall: float | None = None
    copy: float | None = None
    mtbf: float | None = None


@dataclass(frozen=True, slots=True)
class Pace:
    """Steps between snapshots, between copies (a multiple of it), and why."""

    snapshot: int
    copy: int
    reason: str


def pace(every: Every, copy_every: int | None, share: float, measured: Measured) -> Pace:
    """What the spec asks for, in the light of what was measured. `share`: most part of the time that snapshots take.

    `copy_every`: steps between copies, None: with each snapshot, as far as they keep up.
    """
    if every != "auto":
        return Pace(every, _multiple(every, copy_every or every), f"everySteps is {every}")
    if not measured.step or measured.stall is None:
        return Pace(1, copy_every or 1, "nothing is measured yet")
    bound = max(1, math.ceil(measured.stall / (share * measured.step) - 1e-9))
    ideal = math.sqrt(2 * measured.stall * (measured.mtbf or MTBF)) / measured.step
    steps = max(1, bound)
    cost = f"a snapshot costs {measured.stall * 1000:.1f} ms, a step takes {measured.step * 1000:.0f} ms"
    if steps == 1:
        reason = f"{cost}: less than {share:.1%} of the time at every step"
    else:
        reason = f"{cost}: every {steps} steps keeps it to {share:.1%} of the time"
    if ideal < steps:
        reason += f" (failures alone would ask for every {max(1, math.floor(ideal))})"
    copies = copy_every or _keeping_up(steps, measured)
    return Pace(steps, _multiple(steps, copies), reason)


def persist_interval(stall: float, seconds: float, share: float, mtbf: float | None) -> tuple[float, str]:
    """Seconds between checkpoints in durable storage, where a save stalls training for `stall` and takes `seconds`.

    Young and Daly's interval for what the save costs training, but never so often that one save follows the other
    without a pause.
    """
    cost = max(stall, share * seconds)
    known = mtbf or MTBF
    ideal = math.sqrt(2 * cost * known)
    chosen = max(ideal, 2 * seconds)
    return (
        chosen,
        f"sqrt(2 x {cost:.2f} s x {known:.0f} s between failures), at least twice the {seconds:.1f} s of a save",
    )


def _keeping_up(steps: int, measured: Measured) -> int:
    """Steps within which a copy is made, so that copies neither queue up nor take all of the network."""
    if not measured.copy or not measured.step:
        return steps
    return max(steps, math.ceil(measured.copy / measured.step))


def _multiple(of: int, at_least: int) -> int:
    return -(-at_least // of) * of
