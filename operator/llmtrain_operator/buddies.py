"""Who keeps copies of whose snapshots. Pure.

Members stand in a ring in order of their places, and everyone's copies go to the member a fixed way further on: so all
keep as many copies as all others. The way is chosen so that as few as may be stay on the same node, then in the same
rack, then in the same zone; as long as no node has more than half of the members, no copy stays on its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Final

CHOICES: Final = 4
"""Buddies that are named for each member: the later ones stand in for those that fail."""
_NEAR: Final = 8
"""Ways up to this one are tried in any case."""

Place = tuple[str, ...]
"""Where a member is, the widest domain first: (zone, rack, node). All places have the same length."""


def choose(places: Sequence[Place]) -> tuple[tuple[int, ...], ...]:
    """For each member (by rank) the ranks of its buddies, the best first."""
    size = len(places)
    ring = sorted(range(size), key=lambda rank: (places[rank], rank))
    ways = _ways([places[rank] for rank in ring])
    found: list[tuple[int, ...]] = [()] * size
    for at, rank in enumerate(ring):
        found[rank] = tuple(ring[(at + way) % size] for way in ways)
    return tuple(found)


def _ways(ring: Sequence[Place]) -> list[int]:
    """How far along the ring the copies go, the best first: away from the member, and from its other copies."""
    size = len(ring)

    @cache
    def apart(way: int) -> tuple[int, ...]:
        """How many are in another node, rack, zone than the member that far along, the narrowest domain first."""
        pairs = [(place, ring[(at + way) % size]) for at, place in enumerate(ring)]
        levels = range(len(ring[0])) if ring else range(0)
        return tuple(sum(one[: n + 1] != other[: n + 1] for one, other in pairs) for n in reversed(levels))

    candidates = _candidates(ring)
    chosen: list[int] = []
    while len(chosen) < CHOICES and candidates:
        best = max(
            candidates,
            key=lambda way: (apart(way), min((apart((way - other) % size) for other in chosen), default=()), -way),
        )
        candidates.remove(best)
        chosen.append(best)
    return chosen


def _candidates(ring: Sequence[Place]) -> list[int]:
    """Ways worth trying: the next ones, and those that lead out of the largest zone, rack, node, once and twice."""
    size = len(ring)
    ways = set(range(1, _NEAR + 1))
    for level in range(len(ring[0]) if ring else 0):
        largest = max(Counter(place[: level + 1] for place in ring).values())
        ways |= {largest, 2 * largest}
    return sorted(way for way in ways if 0 < way < size)
