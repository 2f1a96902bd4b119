"""Numbers for people: with their unit, and as the marks of an axis. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from dashboards.panel import Unit

_STEPS: Final = (1.0, 2.0, 2.5, 5.0, 10.0)
_PREFIXES: Final = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def shown(value: float, unit: Unit, digits: int = 3) -> str:
    """The number as a panel with that unit writes it, with so many digits, and more where it is a count."""
    if math.isnan(value) or math.isinf(value):
        return "-"
    if unit == "percentunit":
        return f"{_digits(100 * value, digits)} %"
    if unit == "s":
        return _duration(value, digits)
    if unit in ("bytes", "Bps"):
        return _prefixed(value, digits) + ("B/s" if unit == "Bps" else "B")
    if unit == "reqps":
        return f"{_digits(value, digits)}/s"
    if unit == "short":
        return _prefixed(value, digits).rstrip()
    return f"{value:,.0f}" if float(value).is_integer() else _digits(value, digits)


def labels(values: Sequence[float], unit: Unit) -> list[str]:
    """The marks of an axis, with as many digits as tell them apart."""
    for digits in range(3, 9):
        texts = [shown(value, unit, digits) for value in values]
        if len(set(texts)) == len(set(values)):
            break
    return texts


def ticks(least: float, most: float, about: int = 4) -> list[float]:
    """Round numbers, evenly spaced, that reach from `least` or below to `most` or above: the ends of the axis and what
    is between. `most` is greater than `least`."""
    raw = (most - least) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(each * power for each in _STEPS if each * power >= raw * (1 - 1e-9))
    first, last = math.floor(least / step + 1e-9), math.ceil(most / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def _digits(value: float, digits: int) -> str:
    if value == 0:
        return "0"
    if abs(value) < 1e-3 or abs(value) >= 1e6:
        return f"{value:.{digits - 1}e}".replace("e-0", "e-").replace("e+0", "e")
    text = f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _duration(seconds: float, digits: int) -> str:
    if abs(seconds) >= 90:
        minutes, rest = divmod(round(seconds), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
    if seconds and abs(seconds) < 1:
        return f"{_digits(1e3 * seconds, digits)} ms"
    return f"{_digits(seconds, digits)} s"


def _prefixed(value: float, digits: int) -> str:
    for size, prefix in _PREFIXES:
        if abs(value) >= size:
            return f"{_digits(value / size, digits)} {prefix}"
    return f"{_digits(value, digits)} "
