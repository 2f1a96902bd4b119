"""Which members are persistently slower than their peers: by their workers' own time in a step, because its length is
the same for all.

Pure. A worker is slow if its own part of a step takes `SLOW` of the median of all the others', and that makes steps
longer by `COST`; with two workers the other one is the measure. Paces are medians already, so single steps count for
nothing; a member is found once it has been slow without a break for `LASTS` seconds and `STEPS` steps, and no longer
counts once it has kept up for `LASTS` seconds, by narrower limits. Limits: where half of the others or more are slow
too, nobody is found; of a member only the slowest worker is named.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from llmtrain_operator.api import StragglerStatus
from llmtrain_operator.conditions import seconds, timestamp
from llmtrain_operator.contract.wire import Pace
from llmtrain_operator.peers import median_without

LASTS: Final = 30.0
"""Seconds that a member is slow, or keeps up again, before it is said."""
STEPS: Final = 15
"""Steps that it is slow for, too: as many as a pace is the median of."""
KEPT: Final = 8
"""Members that are watched at a time, the slowest."""


class Limits(NamedTuple):
    """`factor`: a worker's own time over that of its peers. `cost`: what it takes longer, as a part of a step."""

    factor: float
    cost: float


SLOW: Final = Limits(1.3, 0.05)
KEEPS_UP: Final = Limits(1.15, 0.025)

Stragglers = tuple[StragglerStatus, ...]


@dataclass(frozen=True, slots=True)
class Lag:
    """How far a worker is behind its peers: its own seconds in a step, the median of theirs, and the whole step."""

    rank: int
    own: float
    peers: float
    step: float

    @property
    def factor(self) -> float:
        """Its own time over that of its peers."""
        return self.own / self.peers

    def exceeds(self, limits: Limits) -> bool:
        """Whether it is slower than that."""
        return self.factor >= limits.factor and self.own - self.peers >= limits.cost * self.step

    def __str__(self) -> str:
        peers = f"{self.factor:.1f} times the {self.peers:.3g} s of its peers"
        return f"{self.own:.3g} s of a step of {self.step:.3g} s are its own, {peers}"


@dataclass(frozen=True, slots=True)
class Seat:
    """Where a worker is: its member's stable index, and the node."""

    member: int
    node: str


def lags(paces: Sequence[Pace]) -> tuple[Lag, ...]:
    """Each worker against all the others; none if there is only one."""
    own = sorted(pace.own for pace in paces)
    found = (Lag(pace.rank, pace.own, median_without(own, pace.own) or 0.0, pace.step) for pace in paces)
    return tuple(lag for lag in found if lag.peers > 0)


def watched(known: Stragglers, lags: Sequence[Lag], seats: Sequence[Seat], step: int, now: float) -> Stragglers:
    """`known` with what is seen at training's `step`. `seats`: of each worker, by rank."""
    before = {each.member: each for each in known}
    behind: dict[int, list[Lag]] = {}
    for lag in lags:
        behind.setdefault(seats[lag.rank].member, []).append(lag)
    seen = {member: _judged(before.get(member), theirs, seats, step, now) for member, theirs in behind.items()}
    kept = [each for each in (before | seen).values() if each]
    return tuple(sorted(kept, key=lambda each: (not each.found, -each.factor, each.member))[:KEPT])


def _judged(
    known: StragglerStatus | None, lags: Sequence[Lag], seats: Sequence[Seat], step: int, now: float
) -> StragglerStatus | None:
    """A member by its slowest worker; the one that is on record stays that for as long as it is slow."""
    lag = max(lags, key=lambda lag: (known is not None and lag.rank == known.rank and lag.exceeds(SLOW), lag.factor))
    seat, changes = seats[lag.rank], {"rank": lag.rank, "factor": round(lag.factor, 2)}
    if known is not None and known.found:
        return _mending(known.model_copy(update=changes), lag, now)
    if not lag.exceeds(SLOW):
        return None
    if known is None:
        return StragglerStatus(member=seat.member, node=seat.node, since=timestamp(now), step=step, **changes)
    lasts = now - seconds(known.since) >= LASTS and step - known.step >= STEPS
    return known.model_copy(update={**changes, "found": lasts})


def _mending(found: StragglerStatus, lag: Lag, now: float) -> StragglerStatus | None:
    """One that was found; None: it has kept up for long enough to count no longer."""
    if lag.exceeds(KEEPS_UP):
        return found.model_copy(update={"keeps_up_since": None})
    since = found.keeps_up_since or timestamp(now)
    return None if now - seconds(since) >= LASTS else found.model_copy(update={"keeps_up_since": since})
