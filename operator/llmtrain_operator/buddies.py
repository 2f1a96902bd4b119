"""Who keeps copies of whose snapshots. Pure.

Members stand in a ring, and each one's copies go to those after it: so everyone keeps as many copies as everyone else.
The ring is ordered so that neighbours are as far apart as may be: in other zones, else other racks, else other nodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Final

CHOICES: Final = 4
"""Buddies that are named for each member: the later ones stand in for those that fail."""

Place = tuple[str, ...]
"""Where a member is, the widest domain first: (zone, rack, node). All places have the same length."""


def choose(places: Sequence[Place]) -> tuple[tuple[int, ...], ...]:
    """For each member (by rank) the ranks of its buddies, the best first."""
    ring = _apart(list(range(len(places))), places, 0)
    at = {rank: position for position, rank in enumerate(ring)}
    most = min(CHOICES, len(places) - 1)
    return tuple(
        tuple(ring[(at[rank] + step) % len(ring)] for step in range(1, most + 1)) for rank in range(len(places))
    )


def _apart(ranks: list[int], places: Sequence[Place], level: int) -> list[int]:
    """The members in an order in which neighbours differ in the domain of this level as often as possible."""
    if not ranks or level >= len(places[ranks[0]]):
        return ranks
    domains: dict[str, list[int]] = {}
    for rank in ranks:
        domains.setdefault(places[rank][level], []).append(rank)
    groups = sorted((_apart(group, places, level + 1) for group in domains.values()), key=len, reverse=True)
    if len(groups) == 1:
        return groups[0]
    # In columns, as cards are dealt: those of one domain are as far apart as there are other domains.
    dealt = [rank for row in zip_longest(*groups) for rank in row if rank is not None]
    return _spread(dealt, groups[0])


def _spread(dealt: list[int], largest: list[int]) -> list[int]:
    """Dealing leaves the rest of the largest domain in a row at the end: put it between the others of it."""
    if 2 * len(largest) <= len(dealt):
        return dealt
    others = [rank for rank in dealt if rank not in set(largest)]
    each = len(largest) / max(1, len(others))
    ordered, taken = [], 0
    for number, other in enumerate(others, 1):
        upto = round(number * each)
        ordered += [*largest[taken:upto], other]
        taken = upto
    return ordered + largest[taken:]
