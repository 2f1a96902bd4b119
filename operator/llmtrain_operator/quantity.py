"""Quantities as people write them in specs: memory, and lengths of time. Pure."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import Any, Final

PATTERN: Final = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$"
_BINARY: Final = {f"{letter}i": 1024 ** (power + 1) for power, letter in enumerate("KMGTPE")}
_DECIMAL: Final = {letter: 1000 ** (power + 1) for power, letter in enumerate("kMGTPE")}
_FACTORS: Final = {"": Fraction(1), "m": Fraction(1, 1000)} | {
    suffix: Fraction(factor) for suffix, factor in (_BINARY | _DECIMAL).items()
}


def parse(quantity: Any) -> int | None:
    """Bytes, rounded up; None for what is no quantity of the usual forms."""
    value = _exact(quantity)
    return None if value is None else math.ceil(value)


def thousandths(quantity: Any) -> int | None:
    """Of a CPU, a byte or a device, rounded up; None for what is no quantity of the usual forms."""
    value = _exact(quantity)
    return None if value is None else math.ceil(value * 1000)


def _exact(quantity: Any) -> Fraction | None:
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([a-zA-Z]{0,2})", str(quantity).strip())
    if found is None or found[2] not in _FACTORS:
        return None
    return Fraction(found[1]) * _FACTORS[found[2]]


def seconds(duration: str) -> float:
    """Of a duration such as 1m30s or 500ms, in the form that the schema admits."""
    units = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
    parts = re.findall(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)", duration)
    return sum(float(number) * units[unit] for number, unit in parts)


def show(count: int) -> str:
    """The shortest exact form."""
    for suffix in ("Gi", "Mi", "Ki"):
        if count % _BINARY[suffix] == 0:
            return f"{count // _BINARY[suffix]}{suffix}"
    return str(count)
