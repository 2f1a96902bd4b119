"""Which agents are there: one session per pod, and the judgement when silence means absence.

The judgement is pure. Silence is held against an agent only as far as the coordinator was itself able to listen
(`lag`), and when many fall silent together the likelier cause is on this side, so they get one more deadline.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from websockets.asyncio.server import ServerConnection

from llmtrain_operator.contract.wire import AgentUpdate, Report
from llmtrain_operator.coordinator.auth import Identity

HEARTBEAT: Final = 0.5
"""Seconds between an agent's reports."""
SUSPICIOUS_SHARE: Final = 0.2
SUSPICIOUS_NUMBER: Final = 2


def expired(now: float, heard: Mapping[str, float], lag: float, deadline: float) -> frozenset[str]:
    """The agents, of all connected ones, whose silence has lasted too long.

    `heard` is when each was last heard, on `now`'s clock; `lag` is for how long in the recent past the coordinator
    did not listen; all in seconds. If more than a fifth of them, and at least two, are falling silent within one
    heartbeat of each other, the deadline is doubled.
    """
    limit = deadline + lag
    silent = sum(1 for then in heard.values() if now - then > limit - 2 * HEARTBEAT)
    if silent >= SUSPICIOUS_NUMBER and silent > SUSPICIOUS_SHARE * len(heard):
        limit += deadline
    return frozenset(uid for uid, then in heard.items() if now - then > limit)


class LagMeter:
    """How long the event loop stood still during the last `window` seconds."""

    def __init__(self, window: float) -> None:
        self._window = window
        self._stalls: deque[tuple[float, float]] = deque()

    def note(self, now: float, stall: float) -> float:
        """Book `stall` seconds that ended at `now`; returns the sum in the window."""
        if stall > 0:
            self._stalls.append((now, stall))
        while self._stalls and now - self._stalls[0][0] > self._window:
            self._stalls.popleft()
        return sum(stall for _, stall in self._stalls)


@dataclass(slots=True)
class Session:
    """What is known of one pod's agent. `connection` is None once it is gone; times are on the loop's clock."""

    identity: Identity
    connection: ServerConnection | None
    heard: float
    report: Report | None = None
    spoke: bool = False  # whether the report came over this connection rather than an earlier one
    detail: str = "connected"
    told: float = field(default=float("-inf"))  # when the controller last heard of it
    untold: bool = False  # whether there is something it has not heard

    def update(self) -> AgentUpdate:
        """The session as the controller sees it."""
        return AgentUpdate(
            namespace=self.identity.namespace,
            uid=self.identity.uid,
            connected=self.connection is not None,
            detail=self.detail,
            report=self.report,
        )


def differs_in_substance(old: Report | None, new: Report) -> bool:
    """Whether `new` says more than newer progress figures."""
    if old is None:
        return True
    return (old.state, old.round, old.store_port, old.host, old.failure) != (
        new.state,
        new.round,
        new.store_port,
        new.host,
        new.failure,
    )
