"""A page about a job's time in one HTML file: table, timeline, loss and step time with incidents. Pure.

It needs nothing but a browser: no script, no font, no picture from elsewhere. Names and messages are shown as text.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import isfinite
from typing import Final

from llmtrain_operator.api import HistoryStatus, JobStatus
from llmtrain_operator.cli import goodput_view
from llmtrain_operator.cli.report import JobReport, seconds
from llmtrain_operator.progress import duration

WIDTH: Final = 960
HEIGHT: Final = 180
LEFT: Final = 70
COLOURS: Final = {
    "productive": "#2e9e4f",
    "snapshot": "#7fc8d8",
    "recompute": "#b05fc0",
    "detect": "#d62728",
    "restart": "#f2a93b",
    "restore": "#f7d070",
    "resize": "#4a7fd0",
    "preflight": "#8aa9dd",
    "backoff": "#8c2d2d",
    "drain": "#28508f",
    "dataWait": "#45a5b5",
    "durableWait": "#2b7a87",
    "export": "#a8d5a2",
    "waiting": "#e88a8a",
    "starting": "#b9b9b9",
    "suspended": "#e6e6e6",
}
OTHER: Final = "#777777"
_STYLE: Final = (
    "body{font:14px/1.5 system-ui,sans-serif;margin:2em auto;max-width:1000px;padding:0 1em;color:#222;background:#fff}"
    "table{border-collapse:collapse}td,th{padding:.15em 1em .15em 0;text-align:right}"
    "td:first-child,th:first-child,.text td{text-align:left}svg{width:100%;height:auto;display:block}"
    "svg text{font:11px system-ui,sans-serif;fill:#555}i{display:inline-block;width:.8em;height:.8em;margin-right:.4em}"
)


def page(seen: JobReport) -> str:
    """The whole document."""
    status = seen.status
    name = escape(f"{seen.namespace}/{seen.name}" if seen.namespace else seen.name)
    end = max(sum(status.ledger.values()), *(status.history.times if status.history else ()), 0.001)
    marks = _marks(status)
    parts = [
        f"<h1>{name}</h1><p>goodput <b>{escape(status.goodput or 'unknown')}</b> of {duration(end)}, "
        f"{escape(seen.state)}, {status.restarts} restarts</p>",
        _table(status),
        f"<h2>Timeline</h2>{_bar(status, end, marks)}",
    ]
    if status.history and status.history.times:
        parts += _curves(status.history, end, marks)
    parts.append(_incidents(status))
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{name}: goodput</title>'
        f"<style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def _table(status: JobStatus) -> str:
    rows = "".join(
        f'<tr><td><i style="background:{_colour(cause)}"></i>{escape(cause)}</td><td>{lasted:,.1f} s</td>'
        f"<td>{share:.1%}</td><td>{paid:,.1f} s</td></tr>"
        for cause, lasted, share, paid in goodput_view.rows(status)
    )
    return f"<table><tr><th>cause</th><th>time</th><th>share</th><th>accelerator time</th></tr>{rows}</table>"


def _bar(status: JobStatus, end: float, marks: Sequence[float]) -> str:
    boxes = "".join(
        f'<rect x="{_x(each.start, end):.2f}" y="10" width="{max(0.3, each.seconds / end * (WIDTH - LEFT)):.2f}" '
        f'height="40" fill="{_colour(each.cause)}"><title>{escape(each.cause)}: {each.seconds:,.1f} s, from '
        f"{duration(each.start)} on</title></rect>"
        for each in status.timeline
    )
    return _svg(70, boxes + _lines(marks, end, 50) + _scale(end, 65))


def _curves(history: HistoryStatus, end: float, marks: Sequence[float]) -> list[str]:
    series = (("Loss", "nats per token", history.losses), ("Step time", "seconds", history.step_seconds))
    return [
        f"<h2>{title}</h2><p>{unit}, over the time since the start; red: incidents</p>"
        + _curve(history.times, values, end, marks)
        for title, unit, values in series
    ]


def _curve(times: Sequence[float], values: Sequence[float], end: float, marks: Sequence[float]) -> str:
    points = [(time, value) for time, value in zip(times, values, strict=True) if isfinite(value)]
    low, high = min(value for _, value in points), max(value for _, value in points)
    span = high - low or 1.0
    path = " ".join(f"{_x(t, end):.2f},{10 + (high - value) / span * HEIGHT:.2f}" for t, value in points)
    labels = f'<text x="0" y="15">{high:.4g}</text><text x="0" y="{HEIGHT + 10}">{low:.4g}</text>'
    line = f'<polyline points="{path}" fill="none" stroke="#1f5fa8" stroke-width="1.5"/>'
    return _svg(HEIGHT + 30, labels + _lines(marks, end, HEIGHT + 10) + line + _scale(end, HEIGHT + 27))


def _marks(status: JobStatus) -> list[float]:
    """When the incidents began, in seconds since the start."""
    if status.start_time is None:
        return []
    return [max(0.0, seconds(each.time) - seconds(status.start_time)) for each in status.incidents]


def _lines(marks: Sequence[float], end: float, height: float) -> str:
    return "".join(
        f'<line x1="{_x(at, end):.2f}" x2="{_x(at, end):.2f}" y1="5" y2="{height}" stroke="#d62728" '
        f'stroke-dasharray="3 3"/>'
        for at in marks
    )


def _incidents(status: JobStatus) -> str:
    if not status.incidents:
        return ""
    rows = "".join(f"<tr><td>{escape(goodput_view.incident_line(each))}</td></tr>" for each in status.incidents)
    return f'<h2>Incidents</h2><table class="text">{rows}</table>'


def _svg(height: float, inner: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height}" xmlns="http://www.w3.org/2000/svg" role="img">{inner}</svg>'


def _scale(end: float, y: float) -> str:
    return "".join(
        f'<text x="{_x(end * part / 4, end):.2f}" y="{y}" text-anchor="{"end" if part == 4 else "middle"}">'
        f"{duration(end * part / 4)}</text>"
        for part in range(5)
    )


def _x(at: float, end: float) -> float:
    return LEFT + at / end * (WIDTH - LEFT)


def _colour(cause: str) -> str:
    return COLOURS.get(cause, OTHER)
