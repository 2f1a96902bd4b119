"""The plan while it is being made: one object that the steps of a pass write their decisions to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from llmtrain_operator import membership, numerics, podset, progress
from llmtrain_operator.api import EndingStatus, JobSpec, JobStatus, RoundStatus
from llmtrain_operator.conditions import ConditionType, put, seconds
from llmtrain_operator.contract.wire import BEFORE_TRAINING, Check, Directive, Member, Round
from llmtrain_operator.state import Action, Event, JobView, Observed, Plan, PodView

ANNOUNCED = 0.25
"""Seconds between the decision to ask for more nodes and the pods that ask."""


@dataclass
class Draft:
    """The plan while it is being made."""

    job: JobView
    spec: JobSpec
    observed: Observed
    now: float
    status: JobStatus
    actions: list[Action] = field(default_factory=list)
    directives: dict[str, Directive] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    departing: dict[str, str] = field(default_factory=dict)
    """UIDs of the pods that are to leave their nodes now, and why."""
    look_again: float | None = None
    unproven: dict[str, str] = field(default_factory=dict)
    """Why these pods, by UID, may not be in a round yet although their agents are ready: see `preflight`."""
    checks: dict[str, Check] = field(default_factory=dict)
    """What their agents are to measure."""

    def set(self, **values: Any) -> None:
        self.status = self.status.model_copy(update=values)

    def condition(self, kind: ConditionType, value: bool | None, reason: str, message: str) -> None:
        old = self.status.conditions
        self.set(conditions=put(old, kind, value, reason, message, generation=self.job.generation, now=self.now))

    def tell(self, reason: str, message: str, *, warning: bool = False) -> None:
        self.events.append(Event("Warning" if warning else "Normal", reason, message))

    def wake_in(self, delay: float) -> None:
        delay = max(delay, 0.0)
        self.look_again = delay if self.look_again is None else min(self.look_again, delay)

    def note_ended(self, uids: Iterable[str]) -> None:
        """Have the ends of these pods on record as judged, for as long as they are there: each is judged once, however
        long it takes to delete them."""
        known = {*self.status.ended_pods, *uids}
        self.set(ended_pods=tuple(sorted(known & self.pods.keys())))

    def instruct_all(self, action: Literal["wait", "stop"], reason: str, persist: str = "") -> None:
        for pod in self.observed.pods:
            if not pod.ended:
                self.directives[pod.uid] = Directive(action, reason, persist=persist)

    @property
    def round(self) -> Round | None:
        """The current round as the agents know it."""
        stored = self.status.round
        if stored is None:
            return None
        members = tuple(
            Member(m.index, m.incarnation, m.pod, m.uid, m.host, m.store_port, m.flash_port) for m in stored.members
        )
        chosen = tuple(member.buddies for member in stored.members)
        return Round(
            stored.number,
            members,
            stored.procs_per_member,
            chosen,
            mtbf=self._mtbf(stored),
            avoid=numerics.avoid(self.status.rollbacks),
        )

    def _mtbf(self, stored: RoundStatus) -> float | None:
        """Mean seconds between failures when the round began."""
        if not self.status.start_time or not self.status.restarts:
            return None
        return max(1.0, (seconds(stored.started_at) - seconds(self.status.start_time)) / self.status.restarts)

    @property
    def pods(self) -> dict[str, PodView]:
        """The job's pods by UID."""
        return {pod.uid: pod for pod in self.observed.pods}

    @property
    def cap(self) -> int:
        """The most members that the job may have now."""
        nodes = self.spec.nodes
        desired = nodes.desired if nodes.desired is not None else nodes.maximum
        return max(nodes.min, min(desired, nodes.maximum))

    @property
    def paid_for(self) -> int:
        """Workers that there is room for in the pods that have a node, whatever they do."""
        pods = (pod for pod in self.observed.pods if not pod.ended)
        return sum(pod.scheduled for pod in pods) * self.spec.nodes.proc_per_node

    @property
    def wanted(self) -> int:
        """How many members the job should have now: the cap, or what the autoscaler has chosen below it."""
        target = self.status.target_nodes if self.status.autoscale and self.spec.autoscale.enabled else None
        return self.cap if target is None else max(self.spec.nodes.min, min(target, self.cap))

    @property
    def probing(self) -> int:
        """Pods beyond members and spares that are there to see whether they get nodes. They come a moment after they
        were announced: by then it is known whether another job has announced the same and gains more from it."""
        probe = self.status.autoscale.probe if self.status.autoscale else None
        if probe is None or self.now - seconds(probe.since) < ANNOUNCED:
            return 0
        return min(probe.members, self.cap - self.wanted)

    @property
    def indexes(self) -> tuple[int, ...]:
        """The indexes of the pods that the job should have now. Which of them are members is up to the round, the
        others are spares."""
        kept = [member.index for member in self.status.round.members] if self.status.round else []
        count = self.wanted + self.spec.nodes.spares + self.probing
        return podset.slots(self.observed.pods, count, kept, self.given_up)

    @property
    def whole(self) -> bool:
        """Whether all members that are wanted are in the round, so that every other pod is a spare or too many."""
        return self.status.round is not None and len(self.status.round.members) >= self.wanted

    @property
    def given_up(self) -> dict[str, str]:
        """UIDs of the pods that others are to take the place of although they look alive, and why: Kubernetes takes
        minutes to give up on those of a dead node."""
        silent = membership.unheard(self.observed.agents)
        return self.departing | dict.fromkeys(silent, "its agent has been silent for too long")

    @property
    def ending(self) -> EndingStatus | None:
        """How the current round is to end, if its members were told to."""
        return self.status.round.ending if self.status.round else None

    @property
    def durable(self) -> str | None:
        """The durable storage that the spec names."""
        checkpoint = self.spec.checkpoint
        return checkpoint.durable.storage if checkpoint and checkpoint.durable else None

    @property
    def resumable(self) -> bool:
        """Whether a round goes on where the one before it was: the reference trainer does with durable storage, a
        script of the user's own if it has told of a checkpoint."""
        if self.spec.entrypoint:
            known = self.status.checkpoint
            return known is not None and known.step is not None
        return self.durable is not None

    @property
    def checkpoint_step(self) -> int | None:
        """The step of the newest checkpoint, None if there is none that the job would go on from."""
        return self.status.checkpoint.step if self.status.checkpoint and self.resumable else None

    @property
    def step(self) -> int:
        """Steps done, as far as is known."""
        return self.status.progress.step if self.status.progress else 0

    @property
    def trains(self) -> bool:
        """Whether the workers of the current round are at it: all in this round, and past loading if they tell."""
        current = self.round
        if current is None:
            return False
        here = (self.observed.agents.get(member.uid) for member in current.members)
        reports = [agent.report for agent in here if agent and agent.report]
        in_round = all(r.round == current.number and r.state in ("running", "succeeded") for r in reports)
        return in_round and self.has_begun

    @property
    def has_begun(self) -> bool:
        """Whether the workers of the current round are, or were, past loading, if they tell."""
        told = progress.said(self.status, self.observed.agents)
        known = None if self.spec.entrypoint else self.status.progress
        phase = told[0].phase if told else known.phase if known else None
        return bool(self.spec.entrypoint if phase is None else phase not in BEFORE_TRAINING)

    def done(self) -> Plan:
        return Plan(self.status, tuple(self.actions), self.directives, tuple(self.events), self.look_again)
