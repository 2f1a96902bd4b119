"""What a directive means for this member. Pure; here an old round is kept from ever coming back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llmtrain_operator.contract.wire import Check, Directive, Pace, Progress, Round


@dataclass(frozen=True, slots=True)
class Order:
    """`stay` as you are, `enter` the round, `leave` the one you are in at once, `save` and let the workers leave it by
    themselves, `stop` with grace, `measure` your node; and why."""

    kind: Literal["stay", "enter", "leave", "save", "stop", "measure"]
    reason: str
    round: Round | None = None
    check: Check | None = None


def decide(
    directive: Directive | None, uid: str, current: int, *, in_round: bool, measured: int | None = None
) -> Order:
    """What the pod `uid` does, whose workers are in round `current` (`in_round`) or were in it last (0: in none).

    `measured`: the check of its node that it made last (0: none yet); None: it makes none.
    """
    if directive is None:
        return Order("stay", "no directive yet")
    if directive.action == "stop":
        return Order("stop", directive.reason)
    if directive.action == "wait":
        if not in_round and directive.check and measured is not None and directive.check.attempt > measured:
            return Order("measure", directive.reason, check=directive.check)
        return Order("leave" if in_round else "stay", directive.reason)
    if directive.action == "save":
        return Order("save" if in_round else "stay", directive.reason)
    target = directive.round
    if target is None or target.number <= current:
        return Order("stay", "not a newer round")
    if in_round:
        return Order("leave", f"round {target.number}: {directive.reason}")
    if target.rank_of(uid) is None:
        return Order("stay", f"not in round {target.number}")
    return Order("enter", directive.reason, target)


def newest(kept: Progress | None, new: Progress) -> Progress:
    """The progress worth reporting: the newest of the lowest rank that knows the loss."""
    if kept is None or new.round > kept.round or new.rank == kept.rank:
        return new
    if new.loss is not None and (kept.loss is None or new.rank < kept.rank):
        return new
    return kept


def paces(kept: tuple[Pace, ...], new: Pace | None) -> tuple[Pace, ...]:
    """The paces of all workers: the newest of each."""
    if new is None:
        return kept
    others = (pace for pace in kept if pace.rank != new.rank)
    return tuple(sorted((*others, new), key=lambda pace: pace.rank))
