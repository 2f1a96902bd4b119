"""Panels and boards as SVG: lines, stacked areas, bars and single numbers. Pure; the same input gives the same text.

A limit: a panel draws at most `MOST_POINTS` points, evenly thinned, and at most `MOST_SERIES` series.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from xml.sax.saxutils import escape

from dashboards.panel import Board, Panel
from dashboards.pictures.scale import labels, shown, ticks

MOST_POINTS: Final = 210
MOST_SERIES: Final = 10
WIDTH: Final = 1200
_HEIGHT: Final = 190
_GAP: Final = 8
_COLUMNS: Final = 24
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 10, 30, 44
_COLORS: Final = (
    "#1f77b4",
    "#ff7f0e",
    "#2ca02c",
    "#d62728",
    "#9467bd",
    "#8c564b",
    "#e377c2",
    "#7f7f7f",
    "#bcbd22",
    "#17becf",
)
_NAMED: Final = {"green": "#2ca02c", "orange": "#ff7f0e", "red": "#d62728", "blue": "#1f77b4"}
_STYLE: Final = (
    "text{font:11px sans-serif;fill:#333}.t{font-weight:bold;font-size:12px}.b{font-size:26px}"
    ".h{font-size:15px;font-weight:bold}.g{stroke:#ddd}.n{fill:#777}polyline{fill:none;stroke-width:1.4}"
)

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Line:
    """What is drawn of a series: what it is called, and its times (seconds) and values in order of time."""

    name: str
    points: Points

    @property
    def newest(self) -> float:
        """Its last value."""
        return self.points[-1][1]


def named(legend: str, labels: Mapping[str, str]) -> str:
    """A legend in Grafana's form with the labels in it."""
    for name, value in labels.items():
        legend = legend.replace(f"{{{{{name}}}}}", value)
    return legend


def board(what: Board, lines: Mapping[str, Sequence[Line]], caption: str) -> str:
    """The whole board. `lines`: by the title of the panel; one without any is drawn as such."""
    parts, y = [], 56
    for row in what.rows:
        parts.append(f'<text class="h" x="{_GAP}" y="{y + 14}">{escape(row.title)}</text>')
        y, column = y + 24, 0
        for one in row.panels:
            width = one.width * WIDTH // _COLUMNS - _GAP
            x = column * WIDTH // _COLUMNS + _GAP // 2
            parts.append(f'<g transform="translate({x},{y})">{panel(one, lines.get(one.title, ()), width)}</g>')
            column += one.width
            if column >= _COLUMNS:
                y, column = y + _HEIGHT + _GAP, 0
        y += 8
    head = f'<text class="h" x="{_GAP}" y="22">{escape(what.title)}</text>'
    head += f'<text class="n" x="{_GAP}" y="42">{escape(caption)}</text>'
    frame = f'<rect width="{WIDTH}" height="{y}" fill="#fff"/>'
    size = f'width="{WIDTH}" height="{y}" viewBox="0 0 {WIDTH} {y}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{_STYLE}</style>{frame}{head}{"".join(parts)}</svg>\n'
    )


def panel(what: Panel, lines: Sequence[Line], width: int) -> str:
    """One panel, as the inside of a group."""
    frame = f'<rect width="{width}" height="{_HEIGHT}" fill="none" stroke="#ccc" rx="3"/>'
    title = f'<text class="t" x="8" y="18">{escape(what.title)}</text>'
    drawn = [line for line in lines if line.points][:MOST_SERIES]
    if not drawn:
        return f'{frame}{title}<text class="n" x="{width // 2}" y="100" text-anchor="middle">no data</text>'
    inside = {"stat": _stat, "bars": _bars, "lines": _lines, "stacked": _stacked}[what.kind]
    return frame + title + "".join(inside(what, drawn, width))


def _stat(what: Panel, lines: Sequence[Line], width: int) -> Iterator[str]:
    for i, line in enumerate(lines):
        x = (i + 0.5) * width / len(lines)
        color = _judged(what, line.newest) or "#333"
        text = escape(shown(line.newest, what.unit))
        yield f'<text class="b" x="{x:.0f}" y="105" text-anchor="middle" style="fill:{color}">{text}</text>'
        yield f'<text class="n" x="{x:.0f}" y="130" text-anchor="middle">{escape(line.name)}</text>'


def _bars(what: Panel, lines: Sequence[Line], width: int) -> Iterator[str]:
    most = max(*(line.newest for line in lines), what.most if what.most == 1 else 0.0, 1e-12)
    each = min(34, (_HEIGHT - _TOP - 8) // len(lines))
    for i, line in enumerate(lines):
        y = _TOP + i * each
        long = max(0.0, line.newest) / most * (width - 16)
        color = _judged(what, line.newest) or _COLORS[i % len(_COLORS)]
        yield f'<rect x="8" y="{y + 13}" width="{long:.1f}" height="{max(3, each - 17)}" fill="{color}"/>'
        text = escape(f"{line.name}: {shown(line.newest, what.unit)}")
        yield f'<text x="8" y="{y + 10}">{text}</text>'


def _lines(what: Panel, lines: Sequence[Line], width: int) -> Iterator[str]:
    values = [value for line in lines for _, value in line.points]
    place = _place(what, lines, min(values), max(values), width)
    yield from place.axes(what)
    for i, line in enumerate(lines):
        dots = " ".join(place.at(time, value) for time, value in thinned(line.points, MOST_POINTS // len(lines)))
        yield f'<polyline points="{dots}" stroke="{_COLORS[i]}"/>'
    yield from _legend(lines, width)


def _stacked(what: Panel, lines: Sequence[Line], width: int) -> Iterator[str]:
    moments = sorted({(time, 0.0) for line in lines for time, _ in line.points})
    times = [time for time, _ in thinned(moments, MOST_POINTS // len(lines))]
    below = [0.0] * len(times)
    layers = []
    for line in lines:
        known = dict(line.points)
        above = [low + known.get(time, 0.0) for time, low in zip(times, below, strict=True)]
        layers.append((below, above))
        below = above
    place = _place(what, lines, 0.0, max(below), width)
    yield from place.axes(what)
    for i, (low, high) in enumerate(layers):
        there = [place.at(time, value) for time, value in zip(times, high, strict=True)]
        back = [place.at(time, value) for time, value in zip(reversed(times), reversed(low), strict=True)]
        yield f'<polygon points="{" ".join(there + back)}" fill="{_COLORS[i]}" fill-opacity="0.55"/>'
    yield from _legend(lines, width)


def thinned(points: Points, most: int) -> Points:
    """At most `most` of them, evenly taken, and the last one always."""
    every = math.ceil(len(points) / most)
    return points if every <= 1 else [*points[:-1:every], points[-1]]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where in a panel a time and a value lie."""

    begin: float
    end: float
    marks: tuple[float, ...]
    width: int

    def at(self, time: float, value: float) -> str:
        """As SVG writes a point."""
        return f"{self.x(time):.0f},{self.y(value):.1f}"

    def x(self, time: float) -> float:
        """Of a time."""
        return _LEFT + (time - self.begin) / max(self.end - self.begin, 1e-9) * (self.width - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        """Of a value."""
        low, high = self.marks[0], self.marks[-1]
        return _HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _BOTTOM - _TOP)

    def axes(self, what: Panel) -> Iterator[str]:
        """Marks of the values at the left, and of the time, in seconds since the beginning, below."""
        for value, label in zip(self.marks, labels(self.marks, what.unit), strict=True):
            y = self.y(value)
            yield f'<line class="g" x1="{_LEFT}" x2="{self.width - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            yield f'<text class="n" x="{_LEFT - 4}" y="{y + 4:.1f}" text-anchor="end">{escape(label)}</text>'
        if self.end <= self.begin:
            return
        for passed in ticks(0.0, self.end - self.begin, 4)[:-1]:
            x = self.x(self.begin + passed)
            yield f'<text class="n" x="{x:.0f}" y="{_HEIGHT - _BOTTOM + 14}">{shown(passed, "s")}</text>'


def _place(what: Panel, lines: Sequence[Line], least: float, most: float, width: int) -> _Place:
    times = [time for line in lines for time, _ in line.points]
    if what.kind == "stacked" or (least >= 0 and least < 0.5 * most):
        least = min(0.0, least)
    if most - least < 1e-12 * max(1.0, abs(most)):
        least, most = min(0.0, least), max(0.0, most) or 1.0
    if least == most:
        most = least + 1.0
    return _Place(min(times), max(times), tuple(ticks(least, most, 4)), width)


def _legend(lines: Sequence[Line], width: int) -> Iterator[str]:
    each = (width - 16) // min(len(lines), 5)
    for i, line in enumerate(lines):
        x, y = 8 + i % 5 * each, _HEIGHT - 18 + i // 5 * 13
        most = max(3, each // 6 - 2)
        name = line.name if len(line.name) <= most else f"{line.name[: most - 1]}…"
        yield f'<rect x="{x}" y="{y - 4}" width="8" height="8" fill="{_COLORS[i]}"/>'
        yield f'<text x="{x + 11}" y="{y + 4}">{escape(name)}</text>'


def _judged(what: Panel, value: float) -> str:
    """The colour that the panel's limits give the value; none if it has no limits."""
    color = ""
    for limit, name in what.colors:
        if not color or value >= limit:
            color = _NAMED[name]
    return color
