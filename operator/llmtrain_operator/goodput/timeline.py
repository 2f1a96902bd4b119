"""The ledger in order of time: segments without gaps, of which there are never many.

Pure. Sums by cause are those of the ledger, always. When there would be too many segments, the ones that take the least
time from its place are put together with the one before that has the same cause: long ones stay where they were.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from llmtrain_operator.api import SegmentStatus

MOST: Final = 96
_LEAST: Final = 0.0005
"""Seconds below which there is nothing: the status has milliseconds."""
_ORDER: Final = (
    *("detect", "backoff", "suspended", "waiting", "starting", "preflight", "restart", "resize", "drain", "restore"),
    *("recompute", "productive", "dataWait", "snapshot", "durableWait", "export"),
)
"""What comes first where all that is known is how much there was of each."""

Segments = list[tuple[str, float]]
"""Cause and seconds."""


def grown(
    timeline: tuple[SegmentStatus, ...], before: Mapping[str, float], after: Mapping[str, float], most: int = MOST
) -> tuple[SegmentStatus, ...]:
    """`timeline`, which is of the ledger `before`, brought to the ledger `after`: what there is less of goes from its
    end, what there is more of is added there."""
    changes = {cause: after.get(cause, 0.0) - before.get(cause, 0.0) for cause in {**before, **after}}
    segments = [(each.cause, each.seconds) for each in timeline]
    for cause, change in changes.items():
        if change < -_LEAST:
            segments = _without(segments, cause, -change)
    more = [(cause, change) for cause, change in changes.items() if change > _LEAST]
    segments += sorted(more, key=lambda each: _ORDER.index(each[0]) if each[0] in _ORDER else -1)
    segments = _joined(segments)
    while len(segments) > most:
        segments = _joined(_gathered(segments))
    return _placed(segments)


def _without(segments: Segments, cause: str, seconds: float) -> Segments:
    left: Segments = []
    for name, length in reversed(segments):
        taken = min(length, seconds) if name == cause else 0.0
        seconds -= taken
        if length - taken > _LEAST:
            left.append((name, length - taken))
    return left[::-1]


def _joined(segments: Segments) -> Segments:
    joined: Segments = []
    for cause, seconds in segments:
        if joined and joined[-1][0] == cause:
            joined[-1] = cause, joined[-1][1] + seconds
        else:
            joined.append((cause, seconds))
    return joined


def _gathered(segments: Segments) -> Segments:
    """With one segment less: one that is put together with the one before of its cause, or that with it."""
    last: dict[str, int] = {}
    passed = 0.0
    ends: list[float] = []
    best: tuple[float, int, int] | None = None
    for index, (cause, seconds) in enumerate(segments):
        if (other := last.get(cause)) is not None:
            between = passed - ends[other]
            cost = min(between, seconds, segments[other][1])
            if best is None or cost < best[0]:
                best = cost, other, index
        passed += seconds
        ends.append(passed)
        last[cause] = index
    if best is None:
        raise AssertionError("there are more segments than causes")
    _, first, second = best
    cause = segments[first][0]
    both = cause, segments[first][1] + segments[second][1]
    first_stays = segments[first][1] >= segments[second][1]
    stays, goes = (first, second) if first_stays else (second, first)
    return [both if index == stays else each for index, each in enumerate(segments) if index != goes]


def _placed(segments: Segments) -> tuple[SegmentStatus, ...]:
    placed, start = [], 0.0
    for cause, seconds in segments:
        placed.append(SegmentStatus(cause=cause, start=round(start, 3), seconds=round(seconds, 3)))
        start += seconds
    return tuple(placed)
