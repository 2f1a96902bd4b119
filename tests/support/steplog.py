"""A job's time by the trainer's own log of its steps, which no operator has a hand in: see `llmtrain_trainer.steplog`.

A step's time is from the end of the step before it, in the same round, to its own end; of a round's first step from its
start. What it waited for data and stood still for snapshots and checkpoints is not training. A step that was done in an
earlier round already is done again. All else of a job's time is none of the log's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Logged:
    """A line of the log. Times are in seconds, `started` and `ended` since 1970."""

    round: int
    step: int
    started: float
    ended: float
    data: float
    stalled: float


@dataclass(frozen=True)
class Sums:
    """Seconds of training for the first time, of training again, of waiting for data, of standing still."""

    productive: float = 0.0
    recompute: float = 0.0
    data: float = 0.0
    stalled: float = 0.0

    @property
    def all(self) -> float:
        """In the training loop, from the first to the last step of each round."""
        return self.productive + self.recompute + self.data + self.stalled


def read(path: Path) -> list[Logged]:
    """All whole lines, in order of time."""
    lines = path.read_bytes().split(b"\n")[:-1]
    return sorted((Logged(**json.loads(line)) for line in lines), key=lambda each: each.ended)


def summed(steps: Iterable[Logged]) -> Sums:
    """The account of these steps."""
    done, last, sums = 0, Logged(0, 0, 0.0, 0.0, 0.0, 0.0), Sums()
    for each in steps:
        began = last.ended if each.round == last.round else each.started
        trained = each.ended - began - each.data - each.stalled
        is_again = each.step <= done
        sums = Sums(
            sums.productive + (0.0 if is_again else trained),
            sums.recompute + (trained if is_again else 0.0),
            sums.data + each.data,
            sums.stalled + each.stalled,
        )
        done, last = max(done, each.step), each
    return sums
