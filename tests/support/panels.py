"""Whether a panel of a board shows something that can be true, by a real Prometheus."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from dashboards.panel import Panel, filled
from dashboards.prometheus import Prometheus, PrometheusError

TOLERANCE: Final = 1e-6


def complaints(server: Prometheus, panel: Panel, values: Mapping[str, str], *, may_be_empty: bool = False) -> list[str]:
    """What is wrong with each of its queries with the variables replaced; nothing if it is as it should be."""
    asked = [(query.legend, filled(query.expr, values)) for query in panel.queries]
    found = [(legend, _wrong(server, panel, expr, may_be_empty)) for legend, expr in asked]
    return [f"{panel.title}, {legend}: {wrong}" for legend, wrong in found if wrong]


def _wrong(server: Prometheus, panel: Panel, expr: str, may_be_empty: bool) -> str:
    try:
        series = server.query(expr)
    except PrometheusError as error:
        return str(error)
    if not series:
        return "" if may_be_empty else f"no series: {expr}"
    numbers = [each.newest for each in series]
    if any(math.isnan(number) for number in numbers):
        return f"no number: {expr}"
    if min(numbers) < panel.least - TOLERANCE or max(numbers) > panel.most + TOLERANCE:
        return f"{numbers} is not between {panel.least} and {panel.most}"
    return ""
