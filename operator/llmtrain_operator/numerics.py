"""What to do when training itself goes wrong: a loss that is no number, or one that rises far and stays up.

Pure. The first time the newest state is gone on from, which cures what chance did, and what a batch did if that is left
out (`skip`). If it comes back before training has got past it, the state was bad already: then an older one is taken,
from durable storage, and what was reached beyond that is void from then on. If that does not help either, nothing will.
So what is certain to come back costs two short rounds, and the number of roll-backs in a job's life is bounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from llmtrain_operator.api import RollbackStatus, SamplesStatus
from llmtrain_operator.conditions import timestamp
from llmtrain_operator.contract.wire import Avoid, Failure, Samples, Void

MOST: Final = 16
"""Roll-backs of a job. One that needs more is not helped by them, and all have to be remembered."""
PROGRESS: Final = 25
"""Steps past the last trouble after which the next is another one: no detection of the trainer takes longer."""


@dataclass(frozen=True, slots=True)
class Ground:
    """What could be gone on from: the newest step in memory or storage, and in storage alone. None: there is none."""

    newest: int | None
    durable: int | None

    @property
    def older(self) -> int | None:
        """The newest step in storage, if it is not the newest of all."""
        if self.newest is None or self.durable is None or self.durable >= self.newest:
            return None
        return self.durable


def judge(
    failure: Failure, past: Sequence[RollbackStatus], ground: Ground, now: float, *, skip: bool
) -> tuple[RollbackStatus | None, str]:
    """Where to go back to, and that in words; or None, and why the job has to fail.

    `skip`: the samples that it came with are left out from now on.
    """
    last = past[-1] if past else None
    attempt = last.attempt + 1 if last and failure.step < last.step + PROGRESS else 1
    target = ground.newest if attempt == 1 else ground.older
    if target is None or attempt > 2:
        return None, f"{_in_vain(past, attempt)}: {failure.message}"
    if len(past) >= MOST:
        return None, f"training was rolled back {MOST} times, which is the most: {failure.message}"
    left_out = failure.samples if skip else None
    made = RollbackStatus(
        time=timestamp(now),
        reason=failure.reason,
        round=failure.round,
        step=failure.step,
        to=target,
        attempt=attempt,
        skip=SamplesStatus(first=left_out.first, end=left_out.end) if left_out else None,
    )
    return made, _in_words(made)


def avoid(rollbacks: Sequence[RollbackStatus]) -> Avoid:
    """What the workers of later rounds have to know."""
    return Avoid(
        skip=tuple(Samples(each.skip.first, each.skip.end) for each in rollbacks if each.skip),
        void=tuple(Void(each.to, each.round) for each in rollbacks if each.attempt > 1),
    )


def _in_vain(past: Sequence[RollbackStatus], attempt: int) -> str:
    if attempt == 1:
        return "there is no state to go back to"
    steps = " and ".join(f"step {each.to}" for each in past[1 - attempt :])
    return f"it came back after going back to {steps}" + (
        ", and durable storage has no older state" if attempt == 2 else ""
    )


def _in_words(made: RollbackStatus) -> str:
    from_where = "the newest state" if made.attempt == 1 else "the newest durable checkpoint, because it came back"
    without = f", without samples {made.skip.first} to {made.skip.end - 1} of the order" if made.skip else ""
    return f"going back to step {made.to}, {from_where}{without}"
