"""What a table of series says: one metric that every job has, made from its newest status. Pure.

Guarantee: a label's values come from a closed set, so that a job has at most `jobs.SERIES_PER_JOB` series, whatever
happens to it. What a job has nothing to say of has no series, rather than a zero that would count in averages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from llmtrain_operator.api import JobStatus

Kind = Literal["gauge", "counter"]
Value = Callable[[JobStatus, float], float | None]
"""A job's number from its status and the time now; None: it has none."""
Values = Callable[[JobStatus], Iterable[tuple[str, float]]]
"""A job's numbers, each with the value of one label, which needs no escaping."""


@dataclass(frozen=True, slots=True)
class Series:
    """One series per job. `name` is what follows `llmtrain_job_`."""

    kind: Kind
    name: str
    help: str
    value: Value


@dataclass(frozen=True, slots=True)
class Labelled:
    """As many series per job as `label` has values, of at most `most`."""

    kind: Kind
    name: str
    help: str
    label: str
    most: int
    values: Values


def gauge(name: str, help_text: str, value: Value) -> Series:
    """A number that goes up and down."""
    return Series("gauge", name, help_text, value)


def counter(name: str, help_text: str, value: Value) -> Series:
    """A number that only grows, as long as the job lives."""
    return Series("counter", name, help_text, value)


def gauges(name: str, help_text: str, label: str, most: int, values: Values) -> Labelled:
    """Numbers that go up and down, by `label`."""
    return Labelled("gauge", name, help_text, label, most, values)


def counters(name: str, help_text: str, label: str, most: int, values: Values) -> Labelled:
    """Numbers that only grow, by `label`."""
    return Labelled("counter", name, help_text, label, most, values)
