"""Where a worker's time goes: a stopwatch that always runs for exactly one thing, so that nothing is counted twice.

What is told grows only at step boundaries and when the phase changes: a step that is never finished is not counted as
trained. For the main thread alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

from llmtrain_operator.contract import wire

Thing = Literal["loading", "restoring", "stepping", "data", "snapshots", "durable", "evaluating", "saving", "exporting"]
"""The fields of `wire.Spent` that are times."""


class Spending:
    """Begins with "loading". `clock` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seconds: dict[Thing, float] = {}
        self._steps = 0
        self._on: Thing = "loading"
        self._since = clock()

    def turn(self, to: Thing) -> None:
        """What passes from now on goes to that."""
        now = self._clock()
        self._seconds[self._on] = self._seconds.get(self._on, 0.0) + now - self._since
        self._on, self._since = to, now

    @contextmanager
    def on(self, thing: Thing) -> Iterator[None]:
        """What passes within goes to `thing`, then to what it went to before."""
        before = self._on
        self.turn(thing)
        try:
            yield
        finally:
            self.turn(before)

    def stepped(self) -> None:
        """One more step is done."""
        self._steps += 1

    def read(self) -> wire.Spent:
        """All of it up to now, to the microsecond."""
        self.turn(self._on)
        times: dict[str, Any] = {thing: round(spent, 6) for thing, spent in self._seconds.items()}
        return wire.Spent(self._steps, **times)
