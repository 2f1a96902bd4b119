"""What is kept of a step, and which steps are final. Pure."""

from __future__ import annotations

import itertools
import math
from collections import deque
from dataclasses import dataclass
from typing import Final

from llmtrain_operator.contract import wire

CARRIED: Final = 4096
"""Points that a snapshot carries at most: an hour of a tracker that does not answer, where a step takes a second."""
WAITING: Final = 256
"""Points that wait at most for their step to be committed."""

FIELDS: Final = {
    "loss": "train/loss",
    "learning_rate": "train/learning_rate",
    "gradient_norm": "train/gradient_norm",
    "epoch": "train/epoch",
    "validation_loss": "validation/loss",
    "perplexity": "validation/perplexity",
    "tokens_per_second": "speed/tokens_per_second",
    "mfu": "speed/mfu",
    "step_seconds": "speed/step_seconds",
    "data_wait_seconds": "speed/data_wait_seconds",
    "round": "job/round",
}
"""Fields of `wire.Progress`, and the names under which trackers show them."""
_WORKERS: Final = "job/workers"
_LETTERS: Final = dict(zip("abcdefghijkl", (*FIELDS.values(), _WORKERS), strict=True))
"""Names as snapshots have them, which may carry thousands of points each step: what a letter means must not change."""
_LETTER_OF: Final = {name: letter for letter, name in _LETTERS.items()}
_OF_EVALUATIONS: Final = ("validation_loss", "perplexity")


@dataclass(frozen=True, slots=True)
class Point:
    """All that is told of one step. `time`: seconds since 1970."""

    step: int
    time: float
    values: dict[str, float]

    def encode(self) -> str:
        """As one line without anything that JSON would escape."""
        values = " ".join(f"{_LETTER_OF[name]}{value!r}" for name, value in self.values.items())
        return f"{self.step} {self.time:.3f} {values}"

    @classmethod
    def decode(cls, text: str) -> Point:
        """The inverse of `encode`."""
        step, time, *values = text.split()
        return cls(int(step), float(time), {_LETTERS[each[0]]: float(each[1:]) for each in values})


def point(progress: wire.Progress, workers: int, time: float, *, evaluated: bool) -> Point:
    """The point of a step. What is not known, or no number, is left out; so is the validation of an earlier step."""
    left_out = () if evaluated else _OF_EVALUATIONS
    given = {name: getattr(progress, field) for field, name in FIELDS.items() if field not in left_out}
    values = {name: float(value) for name, value in given.items() if value is not None and math.isfinite(value)}
    return Point(progress.step, time, values | {_WORKERS: float(workers)})


def is_due(step: int, every: int, max_steps: int, *, evaluated: bool) -> bool:
    """Whether there is to be a point of this step: of every so many, of the last, and wherever there was validation."""
    return evaluated or step % every == 0 or step == max_steps


def final(progress: wire.Progress, begun: int, *, suspect: bool) -> int | None:
    """The newest step that is not done again, whatever member is lost; None: no newer one than before.

    With snapshots in memory that is the committed step, `begun` at first. Without, nothing is final but what is behind
    us: a step that is done again has the same numbers. While the loss is `suspect` steps may be rolled back.
    """
    flash = progress.flash
    if flash and not flash.trouble:
        return begun if flash.committed is None else flash.committed
    return None if suspect else progress.step


class Pending:
    """The points that no tracker is known to have kept, oldest first, each as `Point.encode` has it.

    The same on every worker, since any of their snapshots may be the one that training goes on from; only the speeds
    differ. Bounded: beyond `CARRIED` the oldest is let go of.
    """

    def __init__(self, carried: str = "") -> None:
        lines = carried.splitlines()
        self._points: deque[tuple[int, str]] = deque(((Point.decode(text).step, text) for text in lines), CARRIED)
        self._newest = self._points[-1][0] if self._points else 0

    def note(self, new: Point) -> bool:
        """Whether the point was taken: one of a step that there is a point of is not."""
        if new.step <= self._newest:
            return False
        self._newest = new.step
        self._points.append((new.step, new.encode()))
        return True

    def kept(self, step: int) -> None:
        """Trackers have all up to that step."""
        while self._points and self._points[0][0] <= step:
            self._points.popleft()

    def carried(self) -> str:
        """For a snapshot, a point on each line."""
        return "\n".join(text for _, text in self._points)

    def beyond(self, step: int) -> list[tuple[int, str]]:
        """Steps and points, of later steps than this."""
        later = itertools.takewhile(lambda each: each[0] > step, reversed(self._points))
        return list(later)[::-1]
