"""What the coordinator has told about agents, turned into the views that decisions are made of.

Keeps one record per pod UID and the moment it last changed. Silence is measured here, and only while the coordinator
is there to hear, which is known when it speaks of a first agent: before that the link may be up while no agent can
prove who it is, for want of an API server. An agent that was not heard of since then counts as silent from then on; for
some time it is excused, unless a second witness speaks against it: the others of its round are there, and stand still.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from llmtrain_operator.contract.wire import AgentUpdate, Failure
from llmtrain_operator.state import AgentView, PodView

ARRIVAL_GRACE = 20.0
"""Seconds after the first agent came in which others may still find their way to a coordinator that was restarted."""
STANDSTILL = 3.0
"""Seconds without a step of those who have, at least, and as many times their longest step, that end this grace."""
LOOK = 1.0
"""Seconds between looks while somebody has this grace: agents whose round stands still have nothing to tell."""


@dataclass(slots=True)
class _Known:
    update: AgentUpdate
    since: float
    links: int  # how many links to a coordinator there had been when it told this
    failed_since: float  # when it came with the failure that its report has
    moved: float  # when it told of another step, or came


class AgentBook:
    """Newest updates by pod UID. `clock` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._known: dict[str, _Known] = {}
        self._running: dict[str, tuple[str, float]] = {}  # job and since when, of pods seen running
        self._links = 0
        self._hearing_since: float | None = None

    def link_changed(self, connected: bool) -> None:
        """The link to the coordinator came or went. What it knows is told again after it comes back; a new one knows
        nothing, and of agents that ended meanwhile it will never speak."""
        self._links += connected
        self._hearing_since = None

    def update(self, update: AgentUpdate) -> bool:
        """Take in what the coordinator said. Returns whether it says nothing but how far training is."""
        if self._hearing_since is None:
            self._hearing_since = self._clock()
        known = self._known.get(update.uid)
        lasting = known and known.update.connected == update.connected and known.links == self._links
        since = known.since if known and lasting else self._clock()
        same = known and _failure_in(known.update) == _failure_in(update)
        failed_since = known.failed_since if known and same else self._clock()
        moved = known.moved if known and lasting and _place(known.update) == _place(update) else self._clock()
        self._known[update.uid] = _Known(update, since, self._links, failed_since, moved)
        return bool(known and lasting and _substance(known.update) == _substance(update))

    def excuse(self, uids: Iterable[str]) -> None:
        """Let these agents' silence begin anew: nothing could be done about it so far, for want of an API server,
        without which no agent can prove who it is either."""
        for uid in uids:
            if known := self._known.get(uid):
                known.since = self._clock()
                known.update = replace(known.update, missed=False)

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
            and not (known.update.connected and known.links == self._links)
        ]
        for uid in gone:
            del self._known[uid]
        for uid in [uid for uid, (key, _) in self._running.items() if key == job and uid not in keep]:
            del self._running[uid]

    def views(self, pods: Iterable[PodView]) -> dict[str, AgentView]:
        """The agents of these pods. A pod whose agent was never heard of is left out while that is no wonder: before it
        runs, and soon after this side has begun to listen."""
        pods = tuple(pods)
        still = self._stand_still(pods)
        views = (self._view(pod, still) for pod in pods)
        return {view.uid: view for view in views if view is not None}

    def look_again(self, pods: Iterable[PodView]) -> float | None:
        """Seconds until something may have to be said of a pod that is excused so far, though nobody tells of it."""
        if self._hearing_since is None or self._clock() - self._hearing_since > ARRIVAL_GRACE:
            return None
        heard = {uid for uid, known in self._known.items() if known.links == self._links}
        return LOOK if any(pod.phase == "Running" and pod.uid not in heard for pod in pods) else None

    def _stand_still(self, pods: Iterable[PodView]) -> bool:
        """Whether those of these pods whose agents are there train, and have not taken a step for too long."""
        here = [known for pod in pods if (known := self._known.get(pod.uid)) and known.links == self._links]
        reports = [known.update.report for known in here if known.update.connected]
        told = [report.progress for report in reports if report and report.state == "running"]
        if not told or not all(said and said.phase == "training" for said in told):
            return False
        longest = max((said.step_seconds or 0.0 for said in told if said), default=0.0)
        return self._clock() - max(known.moved for known in here) > STANDSTILL * max(1.0, longest)

    def _view(self, pod: PodView, still: bool) -> AgentView | None:
        known = self._known.get(pod.uid)
        runs_for = self._runs_for(pod)
        heard_for = 0.0 if self._hearing_since is None else max(0.0, self._clock() - self._hearing_since)
        if known and known.update.namespace != pod.namespace:
            return None
        if known and (known.links == self._links or self._hearing_since is None):
            update = known.update
            lasts = self._clock() - known.since
            silent = 0.0 if update.connected else min(lasts, heard_for)
            failed_for = self._clock() - known.failed_since
            connected_for = lasts if update.connected else 0.0
            told = update.detail, update.report, failed_for, connected_for, update.missed, update.quiet
            return AgentView(pod.uid, update.connected, silent, *told)
        if heard_for <= ARRIVAL_GRACE and not still:
            return None
        silent = heard_for - (0.0 if still else ARRIVAL_GRACE)
        if known is None:
            silent = min(silent, runs_for)
            never = "never connected to this coordinator"
            return AgentView(pod.uid, False, silent, never, missed=still) if silent else None
        silent = min(silent, self._clock() - known.since)
        away = "has not come back to the coordinator"
        return AgentView(pod.uid, False, silent, away, known.update.report, missed=still)

    def _runs_for(self, pod: PodView) -> float:
        """Seconds since the pod was first seen running."""
        if pod.phase != "Running":
            return 0.0
        _, since = self._running.setdefault(pod.uid, (f"{pod.namespace}/{pod.job}", self._clock()))
        return self._clock() - since


def _substance(update: AgentUpdate) -> object:
    """What may change in an update beside the figures that change with every step."""
    report = update.report
    if report is None:
        return update
    progress = report.progress
    figures = (progress.round, progress.phase, progress.checkpoints) if progress else None
    there = update.connected, update.missed
    state = report.state, report.leaving, report.preflight
    return there, state, report.round, report.store_port, report.host, report.failure, figures


def _place(update: AgentUpdate) -> tuple[int, int] | None:
    """How far its workers are."""
    said = update.report.progress if update.report else None
    return (said.round, said.step) if said else None


def _failure_in(update: AgentUpdate) -> Failure | None:
    return update.report.failure if update.report else None
