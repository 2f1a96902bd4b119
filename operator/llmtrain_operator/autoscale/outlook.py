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
from llmtrain_operator.autoscale.throughput import ENOUGH_STEPS, Curve, fit, measured

UNKNOWN_REST: Final = 3600.0
"""Seconds that a job is taken to go on which does not say."""
_ALL_SIZES: Final = 64
"""Up to so many sizes are all looked at, of more a geometric choice."""
_EASIER: Final = 1.2
"""Members are given back if they add less than minEfficiency, and taken if they add so much more than that."""
_LOSSES: Final = 0.2
_LOSS_TIME: Final = 600.0
"""Losses of capacity, and the time in which they are taken to have come, before any was seen."""


@dataclass(frozen=True, slots=True)
class Prospect:
    """One size. `value`: relative to the present speed, as expected. `chance`: what finding out is worth, as a share
    of the present speed; not above 0 if it is not worth it."""

    members: int
    value: float
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
    sizes = candidates(limits.minimum, max(reach, size), situation)
    gives = efficient(curve, sizes, limits.min_efficiency)
    eager = efficient(curve, sizes, limits.min_efficiency * _EASIER)
    here = Prospect(size, 1.0 - _loss_share(situation, size, now))
    fair = [n for n in sizes if n != size and n <= reach and n in (eager if n > size else gives)]
    others = tuple(_prospect(situation, limits, curve, n, now) for n in fair)
    smaller = [each for each in others if each.members < size]
    enough = _lasts(situation, curve, size, now) > 10 * situation.pause_seconds
    fewer = max(smaller, key=lambda each: each.value, default=None) if enough else None
    return Outlook(situation, limits, curve, reach, here, others, size in gives, fewer)


def fastest(situation: Situation, limits: Limits, reach: int, now: float) -> int:
    """The size up to `reach` that gets most done, when none trains yet."""
    curve = fit(situation.samples, situation.prior)
    sizes = candidates(limits.minimum, reach, situation)
    fair = efficient(curve, sizes, limits.min_efficiency)
    return max(fair, key=lambda n: (curve.speed(n) * (1.0 - _loss_share(situation, n, now)), -n))


def whole_time(situation: Situation, now: float) -> float:
    """Seconds from the start of training to its end at the present size."""
    started = situation.started_at if situation.started_at is not None else now
    return now - started + _rest(situation, fit(situation.samples, situation.prior), situation.size)


def candidates(minimum: int, most: int, situation: Situation) -> tuple[int, ...]:
    """Sizes that are looked at: all, or if they are many the ends, what was seen, and steps of about a tenth."""
    if most - minimum < _ALL_SIZES:
        return tuple(range(minimum, most + 1))
    chosen = {minimum, most, situation.size, *(each.members for each in situation.samples)}
    here = float(minimum)
    while here < most:
        chosen.add(round(here))
        here = max(here + 1.0, here * 1.1)
    return tuple(sorted(n for n in chosen if minimum <= n <= most))


def efficient(curve: Curve, sizes: Sequence[int], least: float) -> frozenset[int]:
    """Those of `sizes` (ascending) that no smaller one beats: members beyond it add at least `least` each on average,
    in units of what a member of the smallest size gives. The smallest always is one."""
    speeds = [curve.speed(n) for n in sizes]
    unit = speeds[0] / sizes[0]
    found = {sizes[0]}
    for i in range(1, len(sizes)):
        if all(speeds[i] - speeds[k] >= least * unit * (sizes[i] - sizes[k]) for k in range(i)):
            found.add(sizes[i])
    return frozenset(found)


def _prospect(situation: Situation, limits: Limits, curve: Curve, n: int, now: float) -> Prospect:
    pause, size = situation.pause_seconds, situation.size
    lasts = max(_lasts(situation, curve, n, now), 1e-9)
    speed = curve.seconds(size) / curve.seconds(n)
    kept = 1.0 - _loss_share(situation, n, now)
    value = speed * max(0.0, kept - pause / lasts)
    if measured(situation.samples, n):
        return Prospect(n, value)
    testing = max(limits.cool_down, ENOUGH_STEPS * curve.seconds(n))
    price = (2 * pause + testing * max(0.0, 1.0 - speed)) / lasts
    gain = _improvement(math.log(speed), curve.deviation(n)) * kept
    return Prospect(n, value, gain - 2 * price)


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
