"""Whether a panel of a board shows something that can be true, by a real Prometheus."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from dashboards.panel import Panel, Query, filled
from dashboards.prometheus import Prometheus, PrometheusError

TOLERANCE: Final = 1e-6


def complaints(server: Prometheus, panel: Panel, values: Mapping[str, str], at: float | None = None) -> list[str]:
    """What is wrong with each of its queries with the variables replaced; nothing if it is as it should be."""
    found = [(query.legend, _wrong(server, panel, query, values, at)) for query in panel.queries]
    return [f"{panel.title}, {legend}: {wrong}" for legend, wrong in found if wrong]


def _wrong(server: Prometheus, panel: Panel, query: Query, values: Mapping[str, str], at: float | None) -> str:
    try:
        series = server.query(filled(query.expr, values), at)
    except PrometheusError as error:
        return str(error)
    if not series:
        return f"no series: {filled(query.expr, values)}"
    numbers = [each.newest for each in series]
    if any(math.isnan(number) for number in numbers):
        return f"no number: {filled(query.expr, values)}"
    if min(numbers) < panel.least - TOLERANCE or max(numbers) > panel.most + TOLERANCE:
        return f"{numbers} is not between {panel.least} and {panel.most}"
    return ""
