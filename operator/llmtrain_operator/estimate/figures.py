"""Figures as people read them. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from llmtrain_operator.progress import duration


@dataclass(frozen=True, slots=True)
class Fact:
    """One line of an estimate: `value` in `unit` for programs, `shown` for people, and what it rests on."""

    name: str
    value: float | int | str | bool | None
    unit: str
    shown: str
    reason: str = ""


def count(name: str, value: float, reason: str = "", unit: str = "") -> Fact:
    """A large number of things."""
    return Fact(name, value, unit, large(value), reason)


def size(name: str, value: float, reason: str = "") -> Fact:
    """Bytes."""
    return Fact(name, round(value), "bytes", memory_size(value), reason)


def time(name: str, value: float, reason: str = "") -> Fact:
    """Seconds."""
    return Fact(name, value, "seconds", span(value), reason)


def word(name: str, value: str | bool, reason: str = "") -> Fact:
    """What is no number."""
    return Fact(name, value, "", "yes" if value is True else "no" if value is False else value, reason)


def large(value: float) -> str:
    """Three digits and a power of a thousand in words: `82 billion`, `1.31e+22`."""
    for power, name in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if power <= value < power * 1000:
            return f"{value / power:.3g} {name}"
    return f"{value:,.0f}" if value < 1e6 else f"{value:.3g}"


def memory_size(value: float) -> str:
    """Bytes with a binary suffix: `13.4 GiB`."""
    for power, name in ((4, "TiB"), (3, "GiB"), (2, "MiB")):
        if value >= 1024**power:
            return f"{value / 1024**power:.1f} {name}"
    return f"{value / 1024:.1f} KiB"


def span(value: float) -> str:
    """Seconds, in the units in which one speaks of so many: `12 ms`, `3m12s`, `16.4 days`."""
    if value < 10:
        return f"{value * 1000:.3g} ms" if value < 1 else f"{value:.1f} s"
    return duration(value) if value < 2 * 86_400 else f"{value / 86_400:,.1f} days"
