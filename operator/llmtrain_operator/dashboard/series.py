"""A curve that grows for as long as one looks, in bounded memory. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

LIMIT: Final = 512
"""Points of a curve; a screen has hardly more columns."""


class Shape(BaseModel):
    """A frozen record that the page gets as JSON, its names in camelCase."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True, extra="ignore")


class Point(Shape):
    """A step of training: its loss in nats per token, and how long it took."""

    step: int
    loss: float | None = None
    step_seconds: float | None = None


def extended(curve: Sequence[Point], point: Point, limit: int = LIMIT) -> tuple[Point, ...]:
    """`curve` with one more point. Steps that are done again replace what was drawn of them; a full curve is thinned.

    Thinning drops every second point of the older half, so the newest ones stay as fine as they came.
    """
    kept = [each for each in curve if each.step < point.step]
    if len(kept) >= limit:
        half = limit // 2
        kept = kept[:half:2] + kept[half:]
    return (*kept, point)


def joined(recorded: Sequence[Point], seen: Sequence[Point]) -> tuple[Point, ...]:
    """What the operator has recorded, made finer where this page has looked on itself."""
    if not seen:
        return tuple(recorded)
    first, last = seen[0].step, seen[-1].step
    return (*(p for p in recorded if p.step < first), *seen, *(p for p in recorded if p.step > last))
