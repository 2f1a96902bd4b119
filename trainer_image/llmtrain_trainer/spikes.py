"""Tells a loss that has left its course from one that is noisy. Pure, and the same on all workers.

The yardstick is robust: median and median absolute deviation (MAD) of the losses before, of which those that stand out
are no part. It takes a height and a time: three times the median for `SHARP` steps in a row, or twice for `LONG`, each
time far outside of the usual scatter and at least one nat above. So single bad batches, 2x outliers, the fall after the
start and restarts of the learning rate are passed over, and what is called is a model that has lost most of what it
knew. Limit: samples have to come in random order. Where the text changes its kind half-way, the loss may well jump.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Final

WINDOW: Final = 64
"""Losses that are remembered."""
ENOUGH: Final = 32
"""Losses without which nothing is judged."""
SHARP: Final = 3
LONG: Final = 10
"""Steps in a row."""
_SCATTER: Final = 10.0
"""Standard deviations, as the MAD estimates them."""
_SIGMA: Final = 1.4826
_LEAST: Final = 1.0
"""Nats per token."""


class Spikes:
    """Watches the losses of one run. One that is restored goes on with what was `recent`, and `risen`."""

    def __init__(self, recent: Sequence[float] = (), risen: Sequence[float] = ()) -> None:
        self.recent = tuple(recent[-WINDOW:])
        self.risen = tuple(risen)

    def look(self, loss: float) -> bool:
        """Take in the loss of a step; whether it has left its course. It must be a number."""
        loss = round(loss, 4)  # as it is stored, so that a restored run judges alike
        if len(self.recent) < ENOUGH or loss < self._bar(2.0):
            # What stood out and is over was an outlier: it says nothing about the usual scatter.
            self.recent, self.risen = (*self.recent, loss)[-WINDOW:], ()
            return False
        self.risen = (*self.risen, loss)[-LONG:]
        sharp = self.risen[-SHARP:]
        return len(self.risen) == LONG or (len(sharp) == SHARP and min(sharp) >= self._bar(3.0))

    def _bar(self, times: float) -> float:
        median = statistics.median(self.recent)
        scatter = _SIGMA * statistics.median(abs(loss - median) for loss in self.recent)
        return median + max((times - 1.0) * median, _SCATTER * scatter, _LEAST)
