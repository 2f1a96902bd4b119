"""Loss and pace over time, at a bounded number of moments.

Pure. When there would be too many, the one that leaves the smallest gap goes: so they stay even, and the first and the
newest stay. Only steps count that were told of with a loss.
"""

from __future__ import annotations

from typing import Final

from llmtrain_operator.api import HistoryStatus, ProgressStatus

MOST: Final = 96


def taken(history: HistoryStatus | None, told: ProgressStatus, time: float, most: int = MOST) -> HistoryStatus | None:
    """`history` with what was `told` at `time`, seconds since the job's start, if that is news."""
    known = history or HistoryStatus()
    if told.loss is None or told.step_seconds is None or told.phase != "training":
        return history
    if known.steps and (known.steps[-1] == told.step or time <= known.times[-1]):
        return history
    times, steps = (*known.times, round(time, 1)), (*known.steps, told.step)
    losses, paces = (*known.losses, told.loss), (*known.step_seconds, told.step_seconds)
    kept = list(range(len(times)))
    if len(times) > most:
        spare = min(range(1, len(times) - 1), key=lambda index: times[index + 1] - times[index - 1])
        kept.remove(spare)
    return HistoryStatus(
        times=tuple(times[index] for index in kept),
        steps=tuple(steps[index] for index in kept),
        losses=tuple(losses[index] for index in kept),
        step_seconds=tuple(paces[index] for index in kept),
    )
