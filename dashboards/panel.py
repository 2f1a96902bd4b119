"""What a panel shows, apart from any program that shows it. Pure.

Queries are PromQL with Grafana's variables in it; `filled` puts values in their place, as Grafana would. Each panel
says between which values its numbers are plausible, and what a job must have for it to show anything at all: tests
hold every panel to that on a real run.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["lines", "stacked", "stat", "bars"]
"""`lines` and `stacked` are over time; `stat` is one number, `bars` one for each series, both of the newest values."""
Unit = Literal["none", "s", "percentunit", "bytes", "Bps", "short", "reqps"]
"""Units by Grafana's names; `percentunit` is a ratio of 1, `short` shortens thousands."""
Color = Literal["green", "orange", "red", "blue"]
Needs = Literal["", "accelerator", "straggler"]

_METRIC: Final = re.compile(r"\bllmtrain_[a-z0-9_]+")


@dataclass(frozen=True, slots=True)
class Query:
    """PromQL, and how its series are called: a legend in Grafana's form, such as `{{job}} {{reason}}`."""

    expr: str
    legend: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel. `least` and `most` bound what is plausible; `width` is in twenty-fourths of the board."""

    title: str
    description: str
    queries: tuple[Query, ...]
    unit: Unit = "none"
    kind: Kind = "lines"
    least: float = 0.0
    most: float = math.inf
    needs: Needs = ""
    width: int = 8
    colors: tuple[tuple[float, Color], ...] = ()
    """From which value on the number has which colour, in rising order; the first holds from below."""

    @property
    def over_time(self) -> bool:
        """Whether it shows a range of time, not the newest values."""
        return self.kind in ("lines", "stacked")


@dataclass(frozen=True, slots=True)
class Row:
    """Panels under one heading."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Board:
    """A dashboard. `name` is its file's and, after llmtrain-, its UID; `one_job`: it is about one job at a time."""

    name: str
    title: str
    description: str
    rows: tuple[Row, ...]
    one_job: bool = False

    @property
    def panels(self) -> tuple[Panel, ...]:
        """All panels, in order."""
        return tuple(panel for row in self.rows for panel in row.panels)


SELECTED: Final = 'namespace=~"$namespace",job=~"$job"'


def job(metric: str, matchers: str = "") -> str:
    """The selected jobs' series of `llmtrain_job_<metric>`, further narrowed by `matchers`."""
    return f"llmtrain_job_{metric}{{{_both(SELECTED, matchers)}}}"


def member(metric: str, matchers: str = "") -> str:
    """The same of their members' `llmtrain_member_<metric>`."""
    return f"llmtrain_member_{metric}{{{_both(SELECTED, matchers)}}}"


def newest(metric: str, by: str = "", matchers: str = "") -> str:
    """One series per job, and per value of `by`: for a moment two replicas of the operator may tell of the same job."""
    labels = f"namespace, job, {by}" if by else "namespace, job"
    return f"max by ({labels}) ({job(metric, matchers)})"


def rising(metric: str, by: str, matchers: str = "") -> str:
    """How fast a sum of seconds grows, per value of `by`: the share of the moment, or the accelerators, that it takes.

    Not `rate`: what was booked to one cause may be booked to another a little later, and a fall is no restart.
    """
    return f"clamp_min(sum by ({by}) (deriv({job(metric, matchers)}[$__rate_interval])), 0)"


def filled(expr: str, values: Mapping[str, str]) -> str:
    """`expr` with the variables replaced; KeyError for one that has no value."""
    return re.sub(r"\$(\w+)", lambda found: values[found[1]], expr)


def metrics(expr: str) -> frozenset[str]:
    """The names of the project's metrics in a query."""
    return frozenset(_METRIC.findall(expr))


def _both(one: str, other: str) -> str:
    return f"{one},{other}" if other else one
