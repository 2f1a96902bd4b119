"""What the operator would do about a job next: its planner, run on what can be seen from outside. Pure.

Members tell the coordinator what they are doing, and nobody else. So those of the current round are taken to be doing
what the status says, as many others that run as it calls spares to be ready, and of the rest nothing is known but their
pods; the operator may know better. `now` is in seconds since 1970.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from llmtrain_operator.api import Condition, JobStatus, MemberStatus
from llmtrain_operator.api.validation import parse
from llmtrain_operator.contract import names
from llmtrain_operator.contract.wire import Checkpoints, Directive, Progress, Report
from llmtrain_operator.plan import plan
from llmtrain_operator.state import (
    AgentView,
    ApplyChildren,
    CreatePod,
    DeleteJob,
    DeletePod,
    FillDesired,
    JobView,
    Observed,
    Plan,
    PodView,
)

_PASSES: Final = 2
"""Passes after a loss until the next round is formed: one that ends the old round, one that finds all joining."""


@dataclass(frozen=True, slots=True)
class Scene:
    """A job and its pods as they are seen."""

    job: Mapping[str, Any]
    status: JobStatus
    pods: tuple[PodView, ...]
    now: float

    def plan(self, agents: Mapping[str, AgentView]) -> Plan:
        """What the operator would decide if this were all it knew."""
        view = JobView.of(self.job)
        spec, problems = parse(view.name, self.job.get("spec") or {})
        leaving = {node.name: node.taint for node in self.status.leaving_nodes}
        seen = Observed(self.pods, agents, children_applied=True, leaving=leaving)
        return plan(view, spec, problems, self.status, seen, self.now)


def scene(job: Mapping[str, Any], pods: Iterable[PodView], now: float) -> Scene:
    """The present one. Pods of an earlier job of that name are not among them."""
    own = tuple(pod for pod in pods if pod.owner == job["metadata"]["uid"])
    return Scene(job, JobStatus.model_validate(job.get("status") or {}), own, now)


def next_plan(present: Scene) -> Plan:
    """What the operator would decide now."""
    return present.plan(_agents(present, _running))


def after_loss(present: Scene, index: int) -> list[Plan]:
    """What the operator would decide if the pod of this member were gone, pass by pass."""
    gone = {member.uid for member in _members(present.status) if member.index == index}
    left = tuple(pod for pod in present.pods if pod.uid not in gone)
    current, decided = replace(present, pods=left), []
    agents = _agents(current, _running)
    for _ in range(_PASSES):
        decided.append(current.plan(agents))
        joining = {uid: _joining(agent) for uid, agent in agents.items()}
        agents = joining
        current = replace(current, status=decided[-1].status, now=current.now + 1)
    return decided


def in_words(before: JobStatus, decided: Plan) -> list[str]:
    """A plan as sentences: what would be said, done and told, and when the operator would look again."""
    lines = [f"say {_condition(each)}" for each in _news(before.conditions, decided.status.conditions)]
    lines += [_action(action) for action in decided.actions]
    lines += _directives(before, decided.directives)
    lines += [f"post the event {event.reason}: {event.message}" for event in decided.events]
    if decided.look_again is not None:
        lines.append(f"look again in {decided.look_again:.0f} s, or when anything changes")
    return lines


def standing(status: JobStatus) -> list[str]:
    """The conditions that hold now, as the operator wrote them."""
    return [_condition(each) for each in status.conditions]


def _members(status: JobStatus) -> Sequence[MemberStatus]:
    return status.round.members if status.round else ()


def _agents(present: Scene, as_seen: Any) -> dict[str, AgentView]:
    there = {pod.uid for pod in present.pods}
    members = {member.uid: as_seen(present, member) for member in _members(present.status) if member.uid in there}
    others = [pod for pod in present.pods if pod.uid not in members and pod.phase == "Running" and not pod.deleting]
    return members | {pod.uid: _spare(present, pod) for pod in others[: present.status.spares or 0]}


def _running(present: Scene, member: MemberStatus) -> AgentView:
    current = present.status.round
    assert current is not None
    report = Report(
        job=JobView.of(present.job).key,
        pod=member.pod,
        uid=member.uid,
        index=member.index,
        incarnation=member.incarnation,
        host=member.host,
        state="succeeded" if member.succeeded else "running",
        round=current.number,
        progress=_progress(present.status, current.number) if member is current.members[0] else None,
    )
    return AgentView(member.uid, connected=True, silent_for=0.0, detail="", report=report)


def _spare(present: Scene, pod: PodView) -> AgentView:
    key = JobView.of(present.job).key
    report = Report(key, pod.name, pod.uid, pod.index, pod.incarnation, host=pod.ip, state="joining", store_port=1)
    return AgentView(pod.uid, connected=True, silent_for=0.0, detail="", report=report)


def _joining(agent: AgentView) -> AgentView:
    assert agent.report is not None
    return replace(agent, report=replace(agent.report, state="joining", store_port=1, progress=None))


def _progress(status: JobStatus, number: int) -> Progress | None:
    """The report that the status was written from."""
    said = status.progress
    if said is None:
        return None
    known = status.checkpoint
    checkpoints = None
    if known is not None:
        shared = Checkpoints.__dataclass_fields__.keys() & type(known).model_fields.keys()
        checkpoints = Checkpoints(**{name: getattr(known, name) for name in shared})
    shared = (Progress.__dataclass_fields__.keys() & type(said).model_fields.keys()) - {"phase"}
    values = {name: getattr(said, name) for name in shared}
    return Progress(rank=0, round=number, phase=said.phase, checkpoints=checkpoints, **values)  # type: ignore[arg-type]


def _news(before: Sequence[Condition], after: Sequence[Condition]) -> list[Condition]:
    known = {(each.type, each.status, each.reason, each.message) for each in before}
    return [each for each in after if (each.type, each.status, each.reason, each.message) not in known]


def _condition(each: Condition) -> str:
    return f"{each.type}={each.status}, {each.reason}: {each.message}"


def _action(action: object) -> str:
    match action:
        case CreatePod(index, incarnation, avoid):
            where = f", on none of the nodes {', '.join(avoid)}" if avoid else ""
            return f"create a pod for member {index}, its incarnation {incarnation}{where}"
        case DeletePod(name, _, reason):
            return f"delete the pod {name}: {reason}"
        case FillDesired(value):
            return f"fill in spec.nodes.desired: {value}"
        case DeleteJob():
            return "delete the job: ttlSecondsAfterFinished is over"
        case ApplyChildren():
            return "apply the job's Service, disruption budget, service account and network policy"
    return f"do {action}"


def _directives(before: JobStatus, directives: Mapping[str, Directive]) -> list[str]:
    """What members would be told, but for what they are doing already."""
    current = before.round.number if before.round else None
    by_words: dict[str, list[str]] = {}
    for uid, directive in directives.items():
        if directive.action == "run" and directive.round and directive.round.number == current:
            continue
        by_words.setdefault(f"{directive.action}: {directive.reason}", []).append(uid)
    return [f"tell {len(uids)} member{'s' if len(uids) > 1 else ''} to {words}" for words, uids in by_words.items()]


CAVEAT: Final = (
    "Seen from outside: what members tell the operator is not known here. Those of the current round are taken to be "
    f"doing what the status says, others (starting, joining) are known by their pods alone. ({names.KIND} status, "
    "pods; nothing was changed.)"
)
