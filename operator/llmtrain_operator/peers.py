"""What the others are like: the measure of each who is compared with its peers. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence


def median_without(ordered: Sequence[float], value: float) -> float | None:
    """The median of `ordered`, which is sorted, without one `value`; None of nothing.

    Not of a copy: there may be thousands, each with its own.
    """
    left = len(ordered) - 1
    if not left:
        return None
    out = bisect_left(ordered, value)
    low, high = (ordered[place + (place >= out)] for place in ((left - 1) // 2, left // 2))
    return (low + high) / 2
