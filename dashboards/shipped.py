"""The files that come from here: what is in them, and whether those on disk are as they should be."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Final

import yaml

from dashboards import alerts, grafana
from dashboards.boards import BOARDS

BOARDS_AT: Final = PurePosixPath("charts/llmtrain/dashboards")
RULES: Final = PurePosixPath("charts/llmtrain/files/alerts.yaml")
PLAIN_RULES: Final = PurePosixPath("charts/llmtrain/files/alerts-with-defaults.yaml")
VALUES: Final = PurePosixPath("charts/llmtrain/values.yaml")


def files(root: Path) -> dict[PurePosixPath, str]:
    """Path below `root` -> text. The thresholds of the plain rules are the defaults in the chart's values."""
    values = yaml.safe_load((root / VALUES).read_text())["alerts"]
    boards = {BOARDS_AT / f"{board.name}.json": grafana.text(board) for board in BOARDS}
    return boards | {RULES: alerts.text(), PLAIN_RULES: alerts.filled(alerts.text(), alerts.settings(values))}


def outdated(root: Path, wanted: Mapping[PurePosixPath, str]) -> list[PurePosixPath]:
    """Which of `wanted` are not so on disk, and boards that are there and not wanted."""
    known = {PurePosixPath(path.relative_to(root)) for path in (root / BOARDS_AT).glob("*.json")}
    stale = [path for path, text in wanted.items() if _read(root / path) != text]
    return sorted({*stale, *(known - wanted.keys())})


def write(root: Path, wanted: Mapping[PurePosixPath, str]) -> None:
    """Make the files on disk as wanted; boards that are not wanted are removed."""
    for path in outdated(root, wanted):
        if path in wanted:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(wanted[path])
        else:
            (root / path).unlink()


def _read(path: Path) -> str | None:
    return path.read_text() if path.exists() else None
