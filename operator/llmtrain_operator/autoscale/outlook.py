"""What each size would be worth from here on. Pure.

The value of a size is the speed that it would have, as a multiple of the present one, after what pauses take from it:
the one of changing to it now, spread over the time that it would last (to the end of the job, or until such capacity
is usually lost again), and those of losing it. A size that was never seen may also be worth finding out: the expected
improvement (Mockus 1978) over the best known one, less the pauses there and back and what is lost while measuring.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from llmtrain_operator.autoscale.records import Limits, Situation
from llmtrain_operator.autoscale.throughput import Curve, enough, fit, measured, sizes

UNKNOWN_REST: Final = 3600.0
"""Seconds that a job is taken to go on which does not say."""
_EASIER: Final = 1.2
"""Members are given back if they add less than minEfficiency, and taken if they add so much more than that."""
_LOSSES: Final = 0.2
_LOSS_TIME: Final = 600.0
"""Losses of capacity, and the time in which they are taken to have come, before any was seen."""


@dataclass(frozen=True, slots=True)
class Prospect:
    """One size. `value`: relative to the present speed, as expected. `doubt`: by how much that may be off between two
    sizes that were both seen; a size that was not is gone to by expectation, once. `chance`: what finding out is worth,
    as a share of the present speed; not above 0 if it is not worth it."""

    members: int
    value: float
    doubt: float = 0.0
    chance: float = 0.0


@dataclass(frozen=True, slots=True)
class Outlook:
    """The present size and the others that can be had. `efficient`: whether the present one is; `fewer`: the best of
    the smaller ones that are."""

    situation: Situation
    limits: Limits
    curve: Curve
    reach: int
    here: Prospect
    others: tuple[Prospect, ...]
    efficient: bool
    fewer: Prospect | None

    @property
    def pause(self) -> float:
        """Seconds that a change costs."""
        return self.situation.pause_seconds


def look(situation: Situation, limits: Limits, reach: int, now: float) -> Outlook:
    """What can be had from the present size, which is measured."""
    curve, size = fit(situation.samples, situation.prior), situation.size
    looked_at = sizes(limits.minimum, max(reach, size), (size, *(each.members for each in situation.samples)))
    # What members add is only known of a job that was seen at two sizes: an estimate is no reason to take any away.
    known = sum(measured(situation.samples, each.members) for each in situation.samples) > 1
    least = limits.min_efficiency if known else -math.inf
    gives = efficient(curve, looked_at, least, size, 1.0 + 2 * curve.deviation(size))
    eager = efficient(curve, looked_at, least * _EASIER)
    here = Prospect(size, 1.0 - _loss_share(situation, size, now))
    fair = [n for n in looked_at if n != size and n <= reach and n in (eager if n > size else gives)]
    others = tuple(_prospect(situation, curve, n, now) for n in fair)
    smaller = [each for each in others if each.members < size]
    enough = _lasts(situation, curve, size, now) > 10 * situation.pause_seconds
    fewer = max(smaller, key=lambda each: each.value, default=None) if enough else None
    return Outlook(situation, limits, curve, reach, here, others, size in gives, fewer)


def fastest(situation: Situation, limits: Limits, reach: int, now: float) -> int:
    """The size up to `reach` that gets most done, when none trains yet: all of it for a job that never has, as an
    estimate alone is no reason to leave nodes idle."""
    curve = fit(situation.samples, situation.prior if situation.samples else ())
    looked_at = sizes(limits.minimum, reach, tuple(each.members for each in situation.samples))
    fair = efficient(curve, looked_at, limits.min_efficiency)
    return max(fair, key=lambda n: (curve.speed(n) * (1.0 - _loss_share(situation, n, now)), -n))


def whole_time(seen: Outlook, now: float) -> float:
    """Seconds from the start of training to its end at the present size."""
    started = seen.situation.started_at if seen.situation.started_at is not None else now
    return now - started + _rest(seen.situation, seen.curve, seen.here.members)


def efficient(
    curve: Curve, members: Sequence[int], least: float, favoured: int = 0, favour: float = 1.0
) -> frozenset[int]:
    """Those of `members` (ascending) that no smaller one beats: members beyond it add at least `least` each on average,
    in units of what a member of the smallest size gives. The smallest always is one. The speed of
    `favoured` is taken to be `favour` times what it seems."""
    speeds = [curve.speed(n) * (favour if n == favoured else 1.0) for n in members]
    least *= speeds[0] / members[0]
    found = {members[0]}
    best = speeds[0] - least * members[0]
    for n, speed in zip(members[1:], speeds[1:], strict=True):
        if speed - least * n >= best:
            found.add(n)
            best = speed - least * n
    return frozenset(found)


def _prospect(situation: Situation, curve: Curve, n: int, now: float) -> Prospect:
    pause, size = situation.pause_seconds, situation.size
    lasts = max(_lasts(situation, curve, n, now), 1e-9)
    speed = curve.seconds(size) / curve.seconds(n)
    kept = 1.0 - _loss_share(situation, n, now)
    value = speed * max(0.0, kept - pause / lasts)
    if measured(situation.samples, n):
        return Prospect(n, value, doubt=1.5 * math.hypot(curve.deviation(n), curve.deviation(size)))
    testing = enough(situation.samples, n) * curve.seconds(n)
    # What is learned is good for the rest of the job, but further members are worth nothing if they never stay.
    price = (2 * pause + testing * max(0.0, 1.0 - speed)) / max(_rest(situation, curve, n), 1e-9)
    hoped = value if n > size else speed * kept
    gain = _improvement(math.log(hoped), curve.deviation_between(n, size)) if hoped > 0 else 0.0
    return Prospect(n, value, chance=gain - price)


def _improvement(mean: float, deviation: float) -> float:
    """Expected gain over the present speed, if the logarithm of the relative speed is normally distributed."""
    z = mean / deviation
    return deviation * (math.exp(-z * z / 2) / math.sqrt(2 * math.pi) + z * (1 + math.erf(z / math.sqrt(2))) / 2)


def _rest(situation: Situation, curve: Curve, n: int) -> float:
    return UNKNOWN_REST if situation.steps_left is None else situation.steps_left * curve.seconds(max(1, n))


def _lasts(situation: Situation, curve: Curve, n: int, now: float) -> float:
    return min(_rest(situation, curve, n), _hold(situation, n, now))


def _hold(situation: Situation, n: int, now: float) -> float:
    """Seconds that capacity for n members is expected to last, by how often it went away until now."""
    lost = [each.time for each in situation.losses if each.left < n]
    started = situation.started_at if situation.started_at is not None else now
    since = max(started, situation.losses[0].time) if len(situation.losses) >= 16 else started
    return (max(0.0, now - since) + _LOSS_TIME) / (len(lost) + _LOSSES)


def _loss_share(situation: Situation, n: int, now: float) -> float:
    return min(1.0, situation.pause_seconds / _hold(situation, n, now))
