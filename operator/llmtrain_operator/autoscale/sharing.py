"""How many members each of several jobs may have, where they share a cluster. Pure, O(n log n) in jobs times sizes.

In this order: what running jobs need to go on (their minimum), what waiting jobs need to begin, and then, by priority,
members beyond that. Among equals those members come first that add most to a job's speed, in units of what its first
members give; one that a job has already counts a tenth more, so that members do not go to and fro. What adds less than
`least` is handed out only when everyone else has been served.

Nothing is handed out twice; nothing that somebody has room for stays idle. A job that cannot have its minimum gets
nothing; a running job never loses its minimum to another, only to a cluster that has become too small.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from llmtrain_operator.autoscale.throughput import Curve, sizes

KEEPING: Final = 1.1
"""A member that a job already has is worth so much more than another."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A job that shares. `since`: when it was created, which breaks ties. `holds`: members that it has, starting ones
    included. `least`: its minEfficiency."""

    job: str
    priority: int
    since: float
    minimum: int
    cap: int
    holds: int = 0
    curve: Curve = field(default_factory=Curve)
    least: float = 0.05


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Members that a job is offered together, as they add `gain` each only all of them taken."""

    claim: Claim
    members: int
    gain: float
    held: bool

    @property
    def order(self) -> tuple[bool, int, float, float, str]:
        wanted = self.gain >= self.claim.least
        weight = self.gain * KEEPING if self.held and self.gain > 0 else self.gain
        return not wanted, -self.claim.priority, -weight, self.claim.since, self.claim.job


def share(claims: Sequence[Claim], members: int) -> dict[str, int]:
    """Members by job, at most `members` in all (those that the jobs have included)."""
    given, free = dict.fromkeys((each.job for each in claims), 0), members
    for each in sorted(claims, key=lambda each: (each.holds == 0, -each.priority, each.since, each.job)):
        if each.minimum <= free:
            given[each.job] = each.minimum
            free -= each.minimum
    chunks = [chunk for each in claims if given[each.job] for chunk in _chunks(each)]
    for chunk in sorted(chunks, key=lambda chunk: chunk.order):
        taken = min(chunk.members, free)
        given[chunk.claim.job] += taken
        free -= taken
    return given


def _chunks(claim: Claim) -> Iterator[_Chunk]:
    """What a job is offered beyond its minimum, best first: the concave hull of its speed, cut where its members end
    that it has already."""
    hull: list[tuple[int, float]] = []
    for n in sizes(claim.minimum, claim.cap, (claim.holds,)):
        point = (n, claim.curve.speed(n))
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-1], point):
            hull.pop()
        hull.append(point)
    unit = claim.curve.speed(claim.minimum) / claim.minimum
    for left, right in pairwise(hull):
        gain = _slope(left, right) / unit
        cut = max(left[0], min(right[0], claim.holds))
        for first, last, held in ((left[0], cut, True), (cut, right[0], False)):
            if last > first:
                yield _Chunk(claim, last - first, gain, held)


def _slope(left: tuple[int, float], right: tuple[int, float]) -> float:
    return (right[1] - left[1]) / (right[0] - left[0])
