"""Which agents are there: one session per pod, and the judgements when silence means absence.

The judgements are pure. Silence is held against an agent only as far as the coordinator was itself able to listen
(`lag`), and when many fall silent together the likelier cause is on this side, so they get one more deadline. A short
silence is enough where a second witness agrees: the agent's round, whose other members are heard, stands still.
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
BRIEF: Final = 1.2
"""Seconds of silence that end a membership if its round stands still meanwhile."""
STANDSTILL: Final = 0.75
"""Seconds without a step that are a standstill, at least."""
LATELY: Final = 50
"""Reports of other steps that count as lately."""
STEPS: Final = 3.0
"""And as many times the longest step that the round's members have told of lately."""


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


@dataclass(frozen=True, slots=True)
class Part:
    """One agent's part in a round that trains: when it was `heard`, when it last told of another step, the longest that
    one took lately (None: none was told of), and whether it is between steps as usual, not saving or evaluating."""

    heard: float
    moved: float
    step_seconds: float | None
    stepping: bool


def missed(now: float, parts: Mapping[str, Part], lag: float) -> frozenset[str]:
    """The silent ones of a round's agents, if it stands still while the others are heard."""
    silent = frozenset(uid for uid, part in parts.items() if now - part.heard > BRIEF + lag)
    others = [part for uid, part in parts.items() if uid not in silent]
    steps = [part.step_seconds for part in others if part.stepping and part.step_seconds is not None]
    if not silent or not others or len(steps) < len(others):
        return frozenset()
    still = now - max(part.moved for part in parts.values())
    return silent if still > max(STANDSTILL, STEPS * max(steps)) + lag else frozenset()


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
    moved: float = field(default=float("-inf"))  # when it told of another step than before
    steps: deque[float] = field(default_factory=lambda: deque(maxlen=LATELY))  # seconds that the last ones took
    missed: bool = False
    spoke: bool = False  # whether the report came over this connection rather than an earlier one
    detail: str = "connected"
    told: float = field(default=float("-inf"))  # when the controller last heard of it
    untold: bool = False  # whether there is something it has not heard

    def update(self, now: float) -> AgentUpdate:
        """The session as the controller sees it."""
        return AgentUpdate(
            namespace=self.identity.namespace,
            uid=self.identity.uid,
            connected=self.connection is not None,
            detail=self.detail,
            report=self.report,
            missed=self.missed,
            quiet=0.0 if self.connection else max(0.0, now - self.heard),
        )

    def part(self) -> Part | None:
        """Its part in a round, while its workers are in one."""
        report = self.report
        if report is None or report.state != "running":
            return None
        said = report.progress
        stepping = said is not None and said.phase == "training"
        return Part(self.heard, self.moved, max(self.steps, default=None), stepping)

    def hear(self, report: Report, now: float) -> None:
        """Take in what it says."""
        self.heard, self.spoke, said = now, True, report.progress
        before = self.report.progress if self.report else None
        if before is None or said is None or before.round != said.round:
            self.steps.clear()
        if said is not None and (before is None or (said.round, said.step) != (before.round, before.step)):
            self.moved = now
            if said.step_seconds is not None:
                self.steps.append(said.step_seconds)
        self.report = report


def differs_in_substance(old: Report | None, new: Report) -> bool:
    """Whether `new` says more than newer progress figures: a first step is news, the second is not."""
    return old is None or _substance(old) != _substance(new)


def _substance(report: Report) -> tuple[object, ...]:
    phase = report.progress.phase if report.progress else None
    return report.state, report.leaving, report.round, report.store_port, report.host, report.failure, phase
