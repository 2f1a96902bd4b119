"""Which replica leads: what follows from the Lease as it was seen. Pure.

Times are seconds on the caller's own clock. The times inside the record are never compared with that clock, because
replicas' clocks may differ: all that counts is for how long the record has been seen unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

DURATION: Final = 6.0
"""Seconds without a change of the record after which another replica may take it."""
RENEW_DEADLINE: Final = 4.0
"""Seconds after the last renewal was sent for which the holder acts. Shorter than `DURATION` by what a write that is
on its way, and two clocks that do not run equally fast, may take."""
RETRY: Final = 1.0
"""Seconds between renewals, and between looks at a record that another replica holds."""


@dataclass(frozen=True, slots=True)
class Record:
    """What the Lease says. `holder` is empty when it was released or never held; `renewed` is the holder's own time
    stamp, opaque here; `transitions` counts changes of the holder; `duration` is the holder's `DURATION`."""

    holder: str = ""
    renewed: str = ""
    transitions: int = 0
    duration: float = DURATION


@dataclass(frozen=True, slots=True)
class Sighting:
    """A record and since when it has been seen as it is."""

    record: Record
    since: float


@dataclass(frozen=True, slots=True)
class Decision:
    """`take` the record, `renew` it as its holder, or `wait` for `pause` seconds before looking again; and why."""

    kind: Literal["take", "renew", "wait"]
    reason: str
    pause: float = 0.0


def sighted(before: Sighting | None, record: Record, now: float) -> Sighting:
    """The record as seen at `now`, after `before`."""
    return before if before and before.record == record else Sighting(record, now)


def decide(seen: Sighting, me: str, now: float) -> Decision:
    """What the replica `me` does about the record at `now`."""
    holder = seen.record.holder
    if holder == me:
        return Decision("renew", "held by this replica")
    if not holder:
        return Decision("take", "held by nobody")
    left = seen.since + seen.record.duration - now
    if left <= 0:
        return Decision("take", f"{holder} has not renewed it for {now - seen.since:.1f} s")
    return Decision("wait", f"held by {holder}", min(RETRY, left))
