"""A round's time by cause, as a worker that is in it has measured it.

Pure. The worker's account ends with its last step, or with the last change of its phase. The time before its start is
the `lead`, the shortest that ever fits; what is left after its end is the `tail`, which goes to what the worker is at,
until it tells more, or to nobody having noticed yet that it does nothing any more.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmtrain_operator.contract.wire import BEFORE_TRAINING, Phase, Progress, Spent
from llmtrain_operator.goodput import Cause, book


@dataclass(frozen=True, slots=True)
class Ground:
    """What a round's account is read by. `start`: what it was formed for. `best`: steps up to it are done again.
    `saving`: what it is for that the workers save and wait, if they do."""

    start: Cause
    best: int
    saving: Cause


@dataclass(frozen=True, slots=True)
class Account:
    """`seconds` by cause, whose sum is the round's time so far, with `lead` and `tail` in it."""

    seconds: dict[str, float]
    lead: float
    tail: float


def account(told: Progress, spent: Spent, ground: Ground, wall: float, lead: float | None, *, lost: bool) -> Account:
    """The account of `wall` seconds, from what a worker has `told`. `lead`: as found so far. `lost`: the round is, so
    that nothing was done in the tail, not even the step in progress."""
    known = split(told, spent, ground)
    total = sum(known.values())
    if total > wall:  # clocks differ, or the ledger has begun in the midst of the round
        known = {cause: seconds * wall / total for cause, seconds in known.items()}
    rest = max(0.0, wall - total)
    lead = rest if lead is None else min(lead, rest)
    found = {cause: round(seconds, 3) for cause, seconds in book(known, ground.start, lead).items()}
    trained = told.phase not in BEFORE_TRAINING
    cause = "detect" if lost and trained else at(told.phase, told.step, ground)
    left = round(wall - sum(found.values()), 3)
    if left < 0:  # by rounding alone
        longest = max(found, key=lambda each: found[each])
        return Account({**found, longest: round(found[longest] + left, 3)}, round(lead, 3), 0.0)
    return Account({each: round(value, 3) for each, value in book(found, cause, left).items()}, round(lead, 3), left)


def split(told: Progress, spent: Spent, ground: Ground) -> dict[str, float]:
    """What the worker measured, by cause. Steps that are done again take as long as the others."""
    first = told.step - spent.steps
    again = max(0, min(told.step, ground.best) - first)
    recompute = spent.stepping * min(1.0, again / spent.steps) if spent.steps else 0.0
    parts: tuple[tuple[Cause, float], ...] = (
        (ground.start, spent.loading),
        ("restore", spent.restoring),
        ("recompute", recompute),
        ("productive", spent.stepping - recompute + spent.evaluating),
        ("dataWait", spent.data),
        ("snapshot", spent.snapshots),
        ("durableWait", spent.durable),
        (ground.saving, spent.saving),
        ("export", spent.exporting),
    )
    found: dict[str, float] = {}
    for cause, seconds in parts:
        found = book(found, cause, seconds)
    return found


def at(phase: Phase | str, step: int, ground: Ground) -> Cause:
    """What the time goes to while a worker that has done `step` steps is in `phase`."""
    if phase == "loading":
        return ground.start
    if phase == "restoring":
        return "restore"
    if phase == "saving":
        return ground.saving
    if phase in ("exporting", "done"):
        return "export"
    return "recompute" if step < ground.best else "productive"
