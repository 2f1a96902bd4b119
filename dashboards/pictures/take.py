"""From a Prometheus that has seen a run to the pictures of all boards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Final

from dashboards.boards import BOARDS
from dashboards.panel import Board, Panel, filled
from dashboards.pictures import svg
from dashboards.prometheus import Prometheus, Series

CAPTION: Final = "Drawn by llmtrain's own renderer from the boards' queries over a real run; not Grafana."
_POINTS: Final = 60


@dataclass(frozen=True, slots=True)
class Run:
    """What was run: how the variables are to be filled, from when until when (seconds since 1970), and what it was."""

    values: Mapping[str, str]
    start: float
    end: float
    story: str


def lines(server: Prometheus, panel: Panel, run: Run) -> list[svg.Line]:
    """All series of a panel: over the whole run, or as they were at its end."""
    found: list[svg.Line] = []
    for query in panel.queries:
        expr = filled(query.expr, run.values)
        step = max(1.0, (run.end - run.start) / _POINTS)
        series = server.query_range(expr, run.start, run.end, step) if panel.over_time else server.query(expr, run.end)
        found += [svg.Line(svg.named(query.legend, each.labels), _numbers(each)) for each in series]
    return [line for line in found if line.points]


def _numbers(series: Series) -> tuple[tuple[float, float], ...]:
    """Its points, but for shares of nothing, which are no numbers."""
    return tuple(point for point in series.points if isfinite(point[1]))


def picture(server: Prometheus, board: Board, run: Run) -> str:
    """One board, SVG."""
    drawn = {panel.title: lines(server, panel, run) for panel in board.panels}
    return svg.board(board, drawn, f"{CAPTION} {run.story}")


def write(server: Prometheus, run: Run, directory: Path) -> list[Path]:
    """Pictures of all boards, one file each; the files."""
    directory.mkdir(parents=True, exist_ok=True)
    files = [directory / f"board-{board.name}.svg" for board in BOARDS]
    for file, board in zip(files, BOARDS, strict=True):
        file.write_text(picture(server, board, run))
    return files
