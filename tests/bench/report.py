"""What every benchmark has in common: rows, the table, the file."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Row:
    """One figure. `met` is None where nothing was asked."""

    what: str
    value: float
    unit: str
    target: str
    met: bool | None
    detail: str


def clean_up_on_sigterm() -> None:
    """Let it be an exception, so that contexts are left as they should be."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended from outside"))


def publish(name: str, rows: Sequence[Row]) -> None:
    """Print the table and write build/bench/NAME.json."""
    result = ROOT / "build" / "bench" / f"{name}.json"
    result.parent.mkdir(parents=True, exist_ok=True)
    result.write_text(json.dumps({"rows": [vars(row) for row in rows]}, indent=2) + "\n")
    table = Table("what", "value", "unit", "target", "met", "detail")
    for row in rows:
        met = "" if row.met is None else "yes" if row.met else "NO"
        value = f"{row.value:,.3f}" if row.unit == "x" else f"{row.value:,.1f}"
        table.add_row(row.what, value, row.unit, row.target, met, row.detail)
    Console(width=160).print(table)
