"""The ledger of a job's life: every second since its start is booked to exactly one cause of a closed set.

Pure. `booking` brings a job's status up to date, from what the members measured themselves (`rounds`) and else from
what the job was doing; `timeline` has the same in order of time, `history` how training went. A cause that this version
does not know, of another operator's, is carried on as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, get_args

Cause = Literal[
    "productive",
    "snapshot",
    "recompute",
    "detect",
    "restart",
    "restore",
    "resize",
    "preflight",
    "backoff",
    "drain",
    "dataWait",
    "durableWait",
    "export",
    "waiting",
    "starting",
    "suspended",
]
CAUSES: Final = get_args(Cause)
IDLE: Final = "idle"
"""In accelerator time alone: a pod that is in no round, while there is one."""
FAULTS: Final[tuple[Cause, ...]] = ("detect", "backoff", "waiting", "preflight", "restart", "restore", "recompute")
"""What an incident costs."""


def book(ledger: Mapping[str, float], cause: str, seconds: float) -> dict[str, float]:
    """`ledger` (seconds by cause) with `seconds` more of `cause`; time never runs backwards."""
    if seconds <= 0:
        return dict(ledger)
    return {**ledger, cause: ledger.get(cause, 0.0) + seconds}


def moved(ledger: Mapping[str, float], old: Cause, new: Cause, seconds: float) -> dict[str, float]:
    """`ledger` with `seconds` that were booked to `old`, as far as there are so many, booked to `new` instead."""
    taken = min(seconds, ledger.get(old, 0.0))
    return book({**ledger, old: ledger.get(old, 0.0) - taken}, new, taken) if taken > 0 else dict(ledger)


def replaced(ledger: Mapping[str, float], old: Mapping[str, float], new: Mapping[str, float]) -> dict[str, float]:
    """`ledger` with what it has of a stretch of time, `old`, booked as `new`; no more is taken than is there."""
    return {
        cause: max(0.0, ledger.get(cause, 0.0) - old.get(cause, 0.0) + new.get(cause, 0.0))
        for cause in {**ledger, **new}
    }


def goodput(ledger: Mapping[str, float]) -> float | None:
    """Productive share of the time since start, suspension not counted; None before any time has passed."""
    wall = sum(seconds for cause, seconds in ledger.items() if cause != "suspended")
    return ledger.get("productive", 0.0) / wall if wall > 0 else None


def cost(ledger: Mapping[str, float], before: Mapping[str, float]) -> dict[str, float]:
    """What faults have cost since the ledger was `before`, by cause."""
    grown = {cause: round(ledger.get(cause, 0.0) - before.get(cause, 0.0), 3) for cause in FAULTS}
    return {cause: seconds for cause, seconds in grown.items() if seconds > 0}
