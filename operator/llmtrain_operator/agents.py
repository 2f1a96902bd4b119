"""What the coordinator has told about agents, turned into the views that decisions are made of.

Keeps one record per pod UID and the moment it last changed. Silence is measured here, and only while the coordinator
is there to hear: an agent that was never heard of since the link came up counts as silent from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from llmtrain_operator.contract.wire import AgentUpdate
from llmtrain_operator.state import AgentView, PodView

ARRIVAL_GRACE = 20.0
"""Seconds after the link came up in which agents may still find their way to a coordinator that was restarted."""


@dataclass(slots=True)
class _Known:
    update: AgentUpdate
    since: float


class AgentBook:
    """Newest updates by pod UID. `clock` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._known: dict[str, _Known] = {}
        self._link_since: float | None = None

    def link_changed(self, connected: bool) -> None:
        """The link to the coordinator came or went; what it told before is told again after it comes back."""
        self._link_since = self._clock() if connected else None

    def update(self, update: AgentUpdate) -> None:
        """Take in what the coordinator said."""
        known = self._known.get(update.uid)
        since = known.since if known and known.update.connected == update.connected else self._clock()
        self._known[update.uid] = _Known(update, since)

    def forget_all_but(self, uids: Iterable[str], namespace: str, job: str) -> None:
        """Drop agents of this job whose pods are gone."""
        keep = set(uids)
        gone = [
            uid
            for uid, known in self._known.items()
            if uid not in keep
            and known.update.namespace == namespace
            and known.update.report
            and known.update.report.job == job
            and not known.update.connected
        ]
        for uid in gone:
            del self._known[uid]

    def views(self, pods: Iterable[PodView]) -> dict[str, AgentView]:
        """The agents of these pods. A pod whose agent was never heard of is left out while that is no wonder."""
        found = {}
        for pod in pods:
            view = self._view(pod)
            if view is not None:
                found[pod.uid] = view
        return found

    def _view(self, pod: PodView) -> AgentView | None:
        known = self._known.get(pod.uid)
        heard_for = 0.0 if self._link_since is None else max(0.0, self._clock() - self._link_since)
        if known is None:
            if heard_for <= ARRIVAL_GRACE:
                return None
            return AgentView(pod.uid, False, heard_for - ARRIVAL_GRACE, "never connected to this coordinator")
        update = known.update
        if update.namespace != pod.namespace:
            return None
        silent = 0.0 if update.connected else min(self._clock() - known.since, heard_for)
        return AgentView(pod.uid, update.connected, silent, update.detail, update.report)
