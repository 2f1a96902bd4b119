"""Which snapshot may be overwritten. Pure, and the same on every worker, because all know the same.

`committed` is what the job as a whole can go back to; `candidate` is on its way to become that. Neither is given up
before there is a better one, so that whatever happens to whomever there is always a step that all have in common.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pins:
    """Steps of this round's snapshots; `committed` may also be what the round began from. None: there is none."""

    committed: int | None = None
    candidate: int | None = None

    def taken(self, step: int, *, nominate: bool) -> Pins:
        """After a snapshot of `step`, which is to be the next candidate if there is none."""
        return Pins(self.committed, step) if nominate and self.candidate is None else self

    def acknowledged(self) -> Pins:
        """After every worker has said that the candidate is safe."""
        return Pins(self.candidate, None) if self.candidate is not None else self

    def renounced(self) -> Pins:
        """After a worker has said that it does not have the candidate."""
        return Pins(self.committed, None)


def victim(held: Sequence[int | None], pins: Pins, reading: int | None = None) -> int | None:
    """The slot to write the next snapshot to: an empty one, else the oldest that is neither pinned nor being read.

    `held`: what each slot has. With three slots there always is one: the newest, if no other, for its successor is as
    good in a moment.
    """
    kept = {pins.committed, pins.candidate, reading} - {None}
    free = [(-1 if step is None else step, number) for number, step in enumerate(held) if step not in kept]
    return min(free)[1] if free else None
