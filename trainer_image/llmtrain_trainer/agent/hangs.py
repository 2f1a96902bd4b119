"""Whether a worker hangs: it takes no step, and two looks find it at the same place, without having computed though it
could have. Pure.

How long a step takes is learned from the worker's own; only steps of training are watched, because evaluating, saving
and exporting take as long as they take, and so does the first step. A worker that waits for others in a collective is
not the one that hangs: it is given longer, for the case that nobody else is found.
"""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass
from typing import Final

from llmtrain_operator.contract.wire import Progress

LEARNING: Final = 5
"""Steps of a round before a worker is watched."""
SUSPECT: Final = (1.0, 3.0)
"""Seconds without a step after which a worker is looked at, at least, and as many times the median of its steps."""
CERTAIN: Final = (2.0, 6.0)
"""The same after which it hangs, if a second look finds what the first one did."""
DATA: Final = (10.0, 6.0)
"""The same for one that waits for its next batch: storage has its moments."""
WAITING: Final = (30.0, 60.0)
"""The same for one that waits for others in a collective, or for the kernel in a call that nothing interrupts."""
_TICKS: Final = 1
"""Of 10 ms: what a look itself may cost the one that is looked at."""
_STARVED: Final = 0.25
"""Share of the time between two looks that one who waited for a processor may be spared: pods that request none get
next to nothing while others are busy, an operator that starts on their node for one."""
_COLLECTIVES: Final = ("/torch/distributed/", "/deepspeed/comm/", "/deepspeed/runtime/zero/")
_BATCHES: Final = "/llmtrain_trainer/data/"


@dataclass(frozen=True, slots=True)
class Sample:
    """A look at a worker: its main thread's stack, innermost frame first ("" if it gave no answer), the clock ticks
    that it has computed, and the seconds that it could have but had no processor."""

    stack: str
    ticks: int
    starved: float = 0.0


@dataclass(frozen=True, slots=True)
class Hang:
    """The verdict. `where` is the innermost frame; `waits`: it waits for others, of whom none was found to hang.
    `seconds`: since its last step."""

    where: str
    waits: bool
    seconds: float


class HangWatch:
    """For one worker in one round. All times in seconds, on one clock."""

    def __init__(self) -> None:
        self._steps: deque[float] = deque(maxlen=101)
        self._step = -1
        self._moved: float | None = None  # when it took its last step, None while it is not to take any
        self._last: tuple[float, Sample] | None = None

    def hear(self, said: Progress, now: float) -> None:
        """The worker has told its progress."""
        if said.phase != "training":
            self._moved = self._last = None
        elif said.step != self._step:
            self._step, self._moved, self._last = said.step, now, None
            if said.step_seconds is not None:
                self._steps.append(said.step_seconds)

    def due(self, now: float) -> bool:
        """Whether it is time for a look."""
        if self._moved is None or len(self._steps) < LEARNING:
            return False
        first, second = self._limit(SUSPECT), self._limit(CERTAIN)
        since = self._last[0] if self._last else None
        return now >= (self._moved + first if since is None else max(self._moved + second, since + second - first))

    def judge(self, sample: Sample, now: float) -> Hang | None:
        """What a look has found."""
        if self._moved is None:
            return None
        last, self._last = self._last, (now, sample)
        if last is None or last[1].stack != sample.stack:
            return None
        if sample.starved - last[1].starved > _STARVED * (now - last[0]):
            return None
        waits = not sample.stack or any(part in sample.stack for part in _COLLECTIVES)
        computes = sample.ticks - last[1].ticks > _TICKS
        if computes and not waits:  # whoever waits for an accelerator may do it busily
            return None
        rule = WAITING if waits else DATA if _BATCHES in sample.stack else CERTAIN
        still = now - self._moved
        if still < self._limit(rule):
            return None
        return Hang(sample.stack.partition("\n")[0].strip() or "a call that nothing interrupts", waits, still)

    def _limit(self, rule: tuple[float, float]) -> float:
        least, steps = rule
        return max(least, steps * statistics.median(self._steps))
