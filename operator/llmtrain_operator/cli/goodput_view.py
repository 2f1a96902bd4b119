"""A job's ledger for people: rows, incidents, and a timeline of letters that needs no colour. Pure.

Each place of the timeline stands for an equal part of the job's life and shows what took most of it; what was too short
for a place of its own is in the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from llmtrain_operator import goodput
from llmtrain_operator.api import IncidentStatus, JobStatus, SegmentStatus
from llmtrain_operator.cli.report import JobReport
from llmtrain_operator.progress import duration

LOOKS: Final = {
    "productive": ("#", "green"),
    "snapshot": ("s", "cyan"),
    "recompute": ("r", "magenta"),
    "detect": ("!", "red"),
    "restart": ("R", "yellow"),
    "restore": ("o", "yellow"),
    "resize": ("z", "blue"),
    "preflight": ("p", "blue"),
    "backoff": ("b", "red"),
    "drain": ("d", "blue"),
    "dataWait": ("w", "cyan"),
    "durableWait": ("c", "cyan"),
    "export": ("x", "green"),
    "waiting": (".", "red"),
    "starting": ("-", "white"),
    "suspended": (" ", "dim"),
}
"""The sign and the colour of each cause."""
OTHER: Final = ("?", "dim")
_MARGIN: Final = 2


def view(seen: JobReport, width: int) -> RenderableType:
    """Everything, at most `width` characters wide where it can be."""
    status = seen.status
    if not status.ledger:
        return Text(f"{seen.name}: nothing is booked yet")
    heading = Text.assemble((seen.name, "bold"), f"  goodput {status.goodput or 'unknown'} of {_lived(status)}")
    parts: list[RenderableType] = [heading, Text(""), _table(status)]
    if status.timeline:
        parts += [Text(""), *_timeline(status.timeline, max(20, width - _MARGIN))]
    if status.incidents:
        parts += [Text(""), *(Text(incident_line(each)) for each in status.incidents)]
    return Group(*parts)


def facts(seen: JobReport) -> dict[str, Any]:
    """The same for programs: seconds, and shares of the time since the start."""
    status = seen.status
    share = goodput.goodput(status.ledger)
    incidents = [
        {
            "number": each.number,
            "time": each.time,
            "reason": each.reason,
            "outcome": each.outcome,
            "badput": each.badput,
        }
        for each in status.incidents
    ]
    return {
        "namespace": seen.namespace,
        "name": seen.name,
        "goodput": share,
        "seconds": sum(status.ledger.values()),
        "ledger": status.ledger,
        "acceleratorLedger": status.accelerator_ledger,
        "incidents": incidents,
        "timeline": [each.model_dump(by_alias=True) for each in status.timeline],
        "history": status.history.model_dump(by_alias=True) if status.history else None,
    }


def rows(status: JobStatus) -> list[tuple[str, float, float, float]]:
    """Cause, seconds, share of all seconds, accelerator seconds; productive first, then what took most."""
    whole = sum(status.ledger.values()) or 1.0
    causes = {**status.ledger, **status.accelerator_ledger}
    found = [
        (cause, status.ledger.get(cause, 0.0), status.ledger.get(cause, 0.0) / whole, paid)
        for cause in causes
        if (paid := status.accelerator_ledger.get(cause, 0.0)) or status.ledger.get(cause, 0.0)
    ]
    return sorted(found, key=lambda row: (row[0] != "productive", -row[1], -row[3]))


def incident_line(one: IncidentStatus) -> str:
    """What it was and what it cost, such as `#2 Killed: 1.9 s lost: detect 0.4 s, restart 1.5 s`."""
    cost = ", ".join(f"{cause} {seconds:.1f} s" for cause, seconds in one.badput.items())
    lost = f"{sum(one.badput.values()):.1f} s lost: {cost}" if cost else "not over yet"
    if not cost and one.outcome:
        lost = "its cost is not known"
    return f"#{one.number} {one.time} {one.reason}: {lost}"


def _lived(status: JobStatus) -> str:
    suspended = status.ledger.get("suspended", 0.0)
    held = f", {duration(suspended)} of it suspended, which does not count" if suspended else ""
    return f"{duration(sum(status.ledger.values()))}{held}"


def _table(status: JobStatus) -> RenderableType:
    table = Table(box=None, header_style="", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("CAUSE")
    for head in ("TIME", "SHARE", "ACCELERATOR TIME"):
        table.add_column(head, justify="right")
    for cause, seconds, share, paid in rows(status):
        table.add_row(Text(cause, _look(cause)[1]), _time(seconds), f"{share:.1%}", _time(paid))
    return table


def _time(seconds: float) -> str:
    return f"{seconds:.1f}s" if seconds < 60 else duration(seconds)


def _look(cause: str) -> tuple[str, str]:
    return LOOKS.get(cause, OTHER)


def _timeline(segments: Sequence[SegmentStatus], width: int) -> list[RenderableType]:
    shown = Text()
    for cause in cells(segments, width):
        shown.append(*_look(cause))
    end = duration(segments[-1].start + segments[-1].seconds)
    used = {segment.cause for segment in segments}
    legend = Text()
    for cause in (*LOOKS, *sorted(used - LOOKS.keys())):
        if cause in used:
            sign, style = _look(cause)
            legend.append(sign if sign.strip() else "(blank)", style)
            legend.append(f" {cause}  ")
    return [Text.assemble("|", shown, "|"), Text(f"0s{end:>{width}}"), legend]


def cells(segments: Sequence[SegmentStatus], width: int) -> list[str]:
    """The cause that took most of each of `width` equal parts of the whole time."""
    end = segments[-1].start + segments[-1].seconds
    part = end / width
    found = []
    for number in range(width):
        low, high = number * part, (number + 1) * part
        within: dict[str, float] = {}
        for segment in segments:
            shared = min(high, segment.start + segment.seconds) - max(low, segment.start)
            within = goodput.book(within, segment.cause, shared)
        found.append(max(within, key=lambda cause: within[cause]) if within else segments[-1].cause)
    return found
