"""When a durable checkpoint is due, and what all workers do at a step boundary. Pure.

Rank 0's clock and memory decide whether a checkpoint is due; its vote travels to the others in the step's own
all-reduce, so that all decide alike on the same numbers and no collective is added.
Guarantees: a step whose checkpoint exists is not written again; storage that fails is asked again and again, but costs
training no more than a copy each time, except once at the very end.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

FIRST_PAUSE: Final = 10.0
LAST_PAUSE: Final = 60.0
"""Seconds from a failed save to the next attempt: the first, doubling up to the last."""

Action = Literal["train", "save", "put off", "leave", "stop"]


@dataclass(frozen=True, slots=True)
class Cadence:
    """At most `every` seconds and `every_steps` steps between checkpoints (None: time alone)."""

    every: float
    every_steps: int | None = None


@dataclass(frozen=True, slots=True)
class History:
    """What became of this round's saves. Times are in seconds of one clock.

    `step`: newest that is committed or that the round began with; `committed`: whether this job's own storage has it.
    `at`: when its save, or the round, began. `failures` in a row since then, the last at `failed_at`.
    """

    step: int
    committed: bool
    at: float
    failures: int = 0
    failed_at: float = 0.0

    def has(self, step: int) -> bool:
        """Whether the checkpoint of this step exists."""
        return self.committed and self.step == step

    def saved(self, step: int, at: float) -> History:
        """After a save of `step`, begun at `at`, was committed."""
        return History(step, True, at)

    def failed(self, now: float) -> History:
        """After a save failed."""
        return dataclasses.replace(self, failures=self.failures + 1, failed_at=now)


def due(cadence: Cadence, history: History, step: int, now: float, *, hurry: bool) -> tuple[bool, str]:
    """Whether to save the state after `step` now, and why (not). `hurry`: someone waits for it."""
    if history.has(step):
        return False, "this step is saved"
    if history.failures:
        pause = FIRST_PAUSE if hurry else min(LAST_PAUSE, FIRST_PAUSE * 2.0 ** (history.failures - 1))
        return now >= history.failed_at + pause, f"{pause:.0f} s after a failure"
    if hurry:
        return True, "asked to leave"
    if cadence.every_steps and step // cadence.every_steps > history.step // cadence.every_steps:
        return True, f"every {cadence.every_steps} steps"
    return now >= history.at + cadence.every, f"every {cadence.every:g} s"


@dataclass(frozen=True, slots=True)
class Votes:
    """What the workers bring to a step boundary, or its sum over all of them.

    Of any worker: `stop` and `leave` (it got the signal), `writing` (its last save is not over), `fenced` (a newer
    round owns the storage); of its snapshots in memory: `unready` (it has no room for one), `troubled` (and that may
    stay so), `safe` (its candidate is safe), `lost` (it could not take its candidate). Of rank 0: `due`, `failing` (the
    newest save failed), `snap` (a snapshot is due), and `tracked` (the newest step that all trackers have kept).
    """

    stop: float = 0
    leave: float = 0
    writing: float = 0
    fenced: float = 0
    due: float = 0
    failing: float = 0
    unready: float = 0
    troubled: float = 0
    safe: float = 0
    lost: float = 0
    snap: float = 0
    tracked: float = 0

    def without_saving(self) -> Votes:
        """The same, but nothing of this step is to be kept."""
        return dataclasses.replace(self, due=0, snap=0)

    def values(self) -> tuple[float, ...]:
        """In the order of the fields, for a sum."""
        return dataclasses.astuple(self)

    @classmethod
    def of(cls, sums: Sequence[float]) -> Votes:
        """From the sums of `values`."""
        return cls(*sums)


def decide(votes: Votes) -> tuple[Action, str]:
    """What every worker does, from the sum of their votes; and why.

    "stop" and "leave" mean to save first if the step is not saved yet, and to wait for it. A worker asked to leave
    does so only with its state in storage: while that fails, training goes on and probes it by ordinary saves; while a
    save is being written, which on a volume that hangs may be for ever, training does not wait for it either.
    """
    if votes.stop:
        return "stop", "a worker was told to stop"
    if votes.leave and not votes.failing and not votes.writing:
        return "leave", "the workers were told to save and leave"
    if not votes.due:
        return "train", "no checkpoint is due"
    if votes.writing:
        return "put off", "the last checkpoint is still being written"
    return "save", "a checkpoint is due"
