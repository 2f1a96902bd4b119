"""How long a step takes at each size, learned from the job's own steps. Pure.

The form is t(n) = a/n + b + c(n - 1), none of them negative: work that is shared, work that is not, and what grows with
every member. The global batch is constant, so a step is worth the same at every size and speed is all that counts. The
coefficients are the most probable ones given all samples and a prior (Bayesian linear regression), so one sample gives
a guess and every other one makes it surer; `deviation` says how sure. A size that was seen itself is believed more than
the form, which knows nothing of a batch that five members cannot share evenly. Without samples nothing is known but
the prior's own figures; without those every member is taken to be worth as much as the first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Final

from llmtrain_operator.autoscale.records import Sample

ENOUGH_STEPS: Final = 5
"""Fewest steps at a size that count as having measured it."""
KEPT_SIZES: Final = 32
"""Sizes of which samples are kept."""
_ALL_SIZES: Final = 64
_MEMORY_STEPS: Final = 500
"""Older steps than that fade, so that a curve that changes is followed."""
_NOISE: Final = 0.05
_LEAST_NOISE: Final = 0.02
"""Relative deviation of a single step, before it is known and at least."""
_FORM: Final = 0.03
"""Relative deviation of the truth from the form."""
_LEAST: Final = 0.05
"""No size makes so much less of a step as this, beyond what sharing it makes."""
_ESTIMATE: Final = 0.25
"""Relative deviation of an estimate's shape."""
_SHARED: Final = (0.95, 0.5)
_ALONE: Final = (0.05, 0.4)
_GROWING: Final = (0.0, 0.8)
"""Mean and deviation, before anything is known, of a/m, b and c(m + 15), in steps at the smallest size m seen."""

Vector = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Curve:
    """Seconds per step by size. `coefficients` in units of `unit` seconds at `base` members."""

    base: int = 1
    unit: float = 1.0
    coefficients: Vector = (1.0, 0.0, 0.0)
    spread: tuple[Vector, Vector, Vector] | None = None
    corrections: dict[int, tuple[float, float]] = field(default_factory=dict)
    """By size that was seen: the factor by which the form is off, and its relative deviation."""

    def seconds(self, members: int) -> float:
        """Expected seconds per step."""
        factor, _ = self.corrections.get(members, (1.0, 0.0))
        form = _dot(self.coefficients, _features(members, self.base))
        return self.unit * max(form, _LEAST * min(1.0, self.base / members)) * factor

    def speed(self, members: int) -> float:
        """Steps per second; 0 members do none."""
        return 1.0 / self.seconds(members) if members > 0 else 0.0

    def deviation(self, members: int) -> float:
        """Relative standard deviation of `seconds`."""
        if members in self.corrections:
            return self.corrections[members][1]
        return math.hypot(self._spread_along(self._relative(members)), _FORM)

    def deviation_between(self, members: int, other: int) -> float:
        """Relative standard deviation of the ratio of two sizes' seconds: less than of each alone, as what makes one
        slower than it seems does so to its neighbours."""
        along = [a - b for a, b in zip(self._relative(members), self._relative(other), strict=True)]
        apart = min(1.0, abs(math.log2(members / other)))
        return max(1e-6, math.hypot(self._spread_along((along[0], along[1], along[2])), _FORM * apart))

    def _relative(self, members: int) -> Vector:
        x = _features(members, self.base)
        form = max(1e-9, _dot(self.coefficients, x))
        return x[0] / form, x[1] / form, x[2] / form

    def _spread_along(self, x: Vector) -> float:
        if self.spread is None:
            return 1.0
        return math.sqrt(max(0.0, sum(x[i] * self.spread[i][j] * x[j] for i in range(3) for j in range(3))))


def observed(
    samples: Sequence[Sample], members: int, step_seconds: float, steps: int, now: float
) -> tuple[Sample, ...]:
    """`samples` with `steps` more at this size, which took `step_seconds` each (take the median); by size."""
    known = {each.members: each for each in samples}
    old = known.get(members) or Sample(members, step_seconds, 0, now, _noise(samples))
    kept = min(old.steps, max(0, _MEMORY_STEPS - steps))
    mean = (kept * old.step_seconds + steps * step_seconds) / (kept + steps)
    known[members] = Sample(members, mean, kept + steps, now, _noisier(old, kept, step_seconds, steps))
    newest = sorted(known.values(), key=lambda each: -each.time)[:KEPT_SIZES]
    return tuple(sorted(newest, key=lambda each: each.members))


def _noise(samples: Sequence[Sample]) -> float:
    """What a size begins with: it is the same job on the same nodes."""
    return max((each.noise for each in samples), default=_NOISE)


def _noisier(old: Sample, kept: int, step_seconds: float, steps: int) -> float:
    """The noise with another look, by how far that is off what was expected. Looks that are off together count in full:
    noise that lasts is worse than noise that averages out."""
    if not kept:
        return old.noise
    off = (step_seconds / old.step_seconds - 1.0) ** 2 / (1 / steps + 1 / kept)
    return max(_LEAST_NOISE, math.sqrt(0.9 * old.noise**2 + 0.1 * off))


def enough(samples: Sequence[Sample], members: int) -> int:
    """Steps at this size that tell its time within 3 %; at least five."""
    noise = next((each.noise for each in samples if each.members == members), _noise(samples))
    return max(ENOUGH_STEPS, math.ceil((noise / _FORM) ** 2))


def measured(samples: Sequence[Sample], members: int) -> bool:
    """Whether enough steps were seen at this size to judge it."""
    return any(each.members == members and each.steps >= enough(samples, members) for each in samples)


def sizes(least: int, most: int, also: Sequence[int] = ()) -> tuple[int, ...]:
    """The sizes in a range that are worth a look: up to 64 all of them, of more the ends, those of `also`, and steps of
    about a tenth."""
    if most - least < _ALL_SIZES:
        return tuple(range(least, most + 1))
    chosen, here = {least, most, *also}, least
    while here < most:
        chosen.add(here)
        here = max(here + 1, here * 11 // 10)
    return tuple(sorted(n for n in chosen if least <= n <= most))


def fit(samples: Sequence[Sample], prior: Sequence[Sample] = ()) -> Curve:
    """The most probable curve."""
    base = min((*samples, *prior), key=lambda each: each.members, default=None)
    if base is None:
        return Curve()
    unit, m = base.step_seconds, base.members
    rows = [(_features(each.members, m), each.step_seconds / unit, _deviation(each)) for each in samples]
    rows += _shape(samples, prior, m, unit)
    believed = (_SHARED, _ALONE, (_GROWING[0], _GROWING[1] * m / (m + 15)))
    coefficients, spread = _most_probable(rows, believed)
    form = Curve(m, unit, coefficients, spread)
    return Curve(m, unit, coefficients, spread, {each.members: _correction(form, each) for each in samples})


def _deviation(sample: Sample) -> float:
    return math.hypot(sample.noise / math.sqrt(sample.steps), _FORM)


def _shape(
    samples: Sequence[Sample], prior: Sequence[Sample], m: int, unit: float
) -> list[tuple[Vector, float, float]]:
    """An estimate's figures as observations of little weight, brought to the level of what was measured: estimates are
    off by a factor that is the same for all sizes."""
    if not prior:
        return []
    level = 1.0
    if samples:
        guess = fit((), prior)
        level = math.exp(
            sum(math.log(each.step_seconds / guess.seconds(each.members)) for each in samples) / len(samples)
        )
    return [(_features(each.members, m), each.step_seconds * level / unit, _ESTIMATE) for each in prior]


def _correction(form: Curve, sample: Sample) -> tuple[float, float]:
    noise, off = sample.noise**2 / sample.steps, 4 * _FORM**2
    weight = off / (off + noise)
    ratio = sample.step_seconds / form.seconds(sample.members)
    return 1.0 + weight * (ratio - 1.0), math.sqrt(weight * noise)


def _features(members: int, base: int) -> Vector:
    return base / members, 1.0, (members - 1) / base


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _most_probable(
    rows: Sequence[tuple[Vector, float, float]], believed: Sequence[tuple[float, float]]
) -> tuple[Vector, tuple[Vector, Vector, Vector]]:
    """Coefficients that are not negative, and their covariance. `rows`: features, value, relative deviation;
    `believed`: mean and deviation of each coefficient."""
    normal = [[0.0] * 3 for _ in range(3)]
    right = [0.0] * 3
    for i, (mean, deviation) in enumerate(believed):
        normal[i][i] += deviation**-2
        right[i] += mean * deviation**-2
    for x, y, deviation in rows:
        weight = (deviation * y) ** -2
        for i in range(3):
            right[i] += weight * x[i] * y
            for j in range(3):
                normal[i][j] += weight * x[i] * x[j]
    best: tuple[float, Vector] | None = None
    for size in (3, 2, 1):
        for kept in combinations(range(3), size):
            found = _solved(normal, right, kept)
            if min(found) < 0.0:
                continue
            cost = sum(found[i] * (sum(normal[i][j] * found[j] for j in range(3)) - 2 * right[i]) for i in range(3))
            if best is None or cost < best[0]:
                best = (cost, found)
        if best is not None and size == 3:
            break
    assert best is not None, "a positive right-hand side has a solution with one coefficient"
    columns = [_solved(normal, [float(i == j) for i in range(3)], (0, 1, 2)) for j in range(3)]
    return best[1], (columns[0], columns[1], columns[2])


def _solved(normal: Sequence[Sequence[float]], right: Sequence[float], kept: Sequence[int]) -> Vector:
    """The solution in the coefficients `kept`, the others zero. The matrix is positive definite."""
    rows = [[*(normal[i][j] for j in kept), right[i]] for i in kept]
    size = len(rows)
    for i in range(size):
        for j in range(i + 1, size):
            factor = rows[j][i] / rows[i][i]
            rows[j] = [b - factor * a for a, b in zip(rows[i], rows[j], strict=True)]
    found = [0.0, 0.0, 0.0]
    for i in reversed(range(size)):
        known = sum(rows[i][j] * found[kept[j]] for j in range(i + 1, size))
        found[kept[i]] = (rows[i][size] - known) / rows[i][i]
    return found[0], found[1], found[2]
