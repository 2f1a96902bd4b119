"""A job in its second life: three members that train, and passes over what becomes of them."""

from __future__ import annotations

import dataclasses

from llmtrain_operator.api import JobStatus
from llmtrain_operator.conditions import find
from llmtrain_operator.contract.wire import Checkpoints, Flash, Progress
from llmtrain_operator.state import AgentView, CreatePod, Observed
from tests.support.planner import NOW, agent, pod, step

STORAGE = {"durable": {"storage": "pvc://c/j"}}
NODES = {"min": 2, "max": 3, "desired": 3}
RING = {0: (1,), 1: (2,), 2: (0,)}
"""Who keeps the copy of whose snapshots."""


def training(index: int, number=1, at=40, *, checkpoints: Checkpoints | None = None, flash=None, **fields) -> AgentView:
    """An agent whose workers train, and which offers a store for the next round."""
    said = checkpoints or Checkpoints(step=30)
    progress = Progress(index, number, step=at, max_steps=1000, step_seconds=1.0, checkpoints=said, flash=flash)
    return agent(index, "running", number, store_port=5000 + index, progress=progress, **fields)


def held(index: int, number=1, *, ring=RING, state=None, **fields) -> AgentView:
    """A member whose newest snapshot its buddy has; `state` "joining": it has left with it."""
    said = Flash(step=40, committed=40, copies=len(ring[index]), kept_by=ring[index])
    view = training(index, number, flash=said, **fields)
    if state:
        report = dataclasses.replace(view.report, state=state, store_port=6000 + index if state == "joining" else 0)
        view = dataclasses.replace(view, report=report)
    return view


def gone(index: int, number=1, **fields) -> AgentView:
    """An agent whose workers have left the round as they were asked to."""
    return agent(index, "joining", number, **fields)


def silent(view: AgentView, seconds=3.0) -> AgentView:
    """The same agent, lost from sight."""
    return dataclasses.replace(view, connected=False, silent_for=seconds, detail="no heartbeat for 3.1 s")


def missed(view: AgentView) -> AgentView:
    """The same agent, lost from sight a moment ago, since when its round stands still."""
    return dataclasses.replace(silent(view, 0.0), missed=True)


class Job:
    """A job with durable storage and nodes 2..3, in round 1 with three members at step 40; `look` makes one pass."""

    def __init__(self, report=training, **fields) -> None:
        self.fields = {"nodes": NODES, "checkpoint": STORAGE} | fields
        self.now = NOW
        self.status = JobStatus(incarnations={"0": 1, "1": 1, "2": 1})
        self.look(*map(agent, range(3)), after=0)
        self.look(*map(report, range(3)))
        assert self.status.state == "Running"

    def look(self, *agents: AgentView, pods=None, after=1.0, leaving=None):
        self.now += after
        there = tuple(map(pod, range(3))) if pods is None else tuple(pods)
        seen = Observed(there, {view.uid: view for view in agents}, children_applied=True, leaving=leaving or {})
        self.decided = step(self.status, seen, now=self.now, **self.fields)
        if not self.decided.actions:
            again = step(self.decided.status, seen, now=self.now, **self.fields)
            assert again.status == self.decided.status, "a pass that is repeated decides the same"
        self.status = self.decided.status
        return self.decided

    @property
    def members(self) -> list[int]:
        return [member.index for member in self.status.round.members] if self.status.round else []

    @property
    def told(self) -> dict[str, str]:
        return {uid: directive.action for uid, directive in self.decided.directives.items()}

    @property
    def events(self) -> list[str]:
        return [event.reason for event in self.decided.events]

    @property
    def creates(self) -> list[CreatePod]:
        return [action for action in self.decided.actions if isinstance(action, CreatePod)]

    def reason(self, kind) -> str:
        return find(self.status.conditions, kind).reason

    def message(self, kind) -> str:
        return find(self.status.conditions, kind).message
