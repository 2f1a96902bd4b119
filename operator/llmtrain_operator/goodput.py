"""The ledger of a job's life: every second since its start is booked to exactly one cause.

Pure. The controller books the time between two passes to what the job was doing in between, as far as the newest
reports tell; causes come from the closed set below, so the sums add up to wall time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, get_args

Cause = Literal[
    "productive",
    "starting",
    "detect",
    "restart",
    "recompute",
    "resize",
    "save",
    "export",
    "waiting",
    "drain",
    "suspended",
    "backoff",
]
CAUSES: Final = get_args(Cause)


def book(ledger: Mapping[str, float], cause: Cause, seconds: float) -> dict[str, float]:
    """`ledger` (seconds by cause) with `seconds` more of `cause`; time never runs backwards."""
    if seconds <= 0:
        return dict(ledger)
    return {**ledger, cause: ledger.get(cause, 0.0) + seconds}


def moved(ledger: Mapping[str, float], old: Cause, new: Cause, seconds: float) -> dict[str, float]:
    """`ledger` with `seconds` that were booked to `old`, as far as there are so many, booked to `new` instead."""
    taken = min(seconds, ledger.get(old, 0.0))
    return book({**ledger, old: ledger.get(old, 0.0) - taken}, new, taken) if taken > 0 else dict(ledger)


def goodput(ledger: Mapping[str, float]) -> float | None:
    """Productive share of the time since start, suspension not counted; None before any time has passed."""
    wall = sum(seconds for cause, seconds in ledger.items() if cause != "suspended")
    return ledger.get("productive", 0.0) / wall if wall > 0 else None
