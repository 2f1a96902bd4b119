"""New members are measured before they may join, and go if their nodes fall short of the others'.

Level-triggered like the rest: what an agent has measured is in its report, so each pass judges anew whoever has not
been in a round yet. At a start those who arrive together are each other's peers; later also those who train, who are
judged no more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llmtrain_operator import failure, preflight
from llmtrain_operator.api import RejectionStatus
from llmtrain_operator.conditions import seconds, short, timestamp
from llmtrain_operator.contract.wire import Check, Neighbour, Preflight, Report
from llmtrain_operator.plan.avoid import avoid
from llmtrain_operator.plan.draft import Draft
from llmtrain_operator.plan.ends import finish
from llmtrain_operator.state import AgentView, DeletePod, PodView

REASON = "PreflightFailed"
NEIGHBOUR_PATIENCE = 10.0
"""Seconds that an agent waits for another to measure the network against, if there is to be one."""


def inspect(run: Draft) -> None:
    """Have new members measured and hold them back until they have passed; reject those that fail."""
    settings = run.spec.recovery.preflight
    if not settings.enabled:
        run.set(rejections=())
        return
    nodes = _measuring(run)
    wanting = preflight.shortfalls({node.pod.uid: node.found for node in nodes}, settings.tolerance)
    wanted = set(run.indexes)
    named = {member.uid for member in run.status.round.members} if run.status.round else set()
    for node in nodes:
        if run.status.completion_time:
            return
        is_new = node.agent.connected and node.report.round == 0 and node.pod.uid not in named
        if is_new and node.pod.index in wanted:
            _judge(run, node, wanting.get(node.pod.uid, ""), nodes)
    _say_how_it_stands(run, nodes, wanting, wanted)


@dataclass(frozen=True, slots=True)
class _Node:
    """A pod that lives, and what its agent has told of the node."""

    pod: PodView
    agent: AgentView
    report: Report
    found: Preflight


def _measuring(run: Draft) -> list[_Node]:
    """All whose agents know how to measure, by index."""
    nodes = []
    for pod in run.observed.pods:
        agent = run.observed.agents.get(pod.uid)
        report = agent.report if agent else None
        if pod.usable and agent and report and report.preflight:
            nodes.append(_Node(pod, agent, report, report.preflight))
    return sorted(nodes, key=_place)


def _place(node: _Node) -> tuple[int, int]:
    return node.pod.index, node.pod.incarnation


def _judge(run: Draft, node: _Node, why: str, nodes: list[_Node]) -> None:
    attempt = node.found.attempt
    if why and attempt >= preflight.ATTEMPTS:
        _reject(run, node.pod, why)
    elif why or not attempt:
        doing = f"measured again, because {why}" if why else "being measured"
        run.unproven[node.pod.uid] = f"pre-flight: {doing}"
        _measure(run, node, attempt + 1, nodes)


def _measure(run: Draft, node: _Node, attempt: int, nodes: list[_Node]) -> None:
    against = _neighbour(node, attempt, nodes)
    left = NEIGHBOUR_PATIENCE - node.agent.connected_for
    if against is None and run.wanted > 1 and left > 0:
        run.wake_in(left)
    else:
        run.checks[node.pod.uid] = Check(attempt, against)


def _neighbour(node: _Node, attempt: int, nodes: list[_Node]) -> Neighbour | None:
    """The next one in a ring of all who are there, another with each attempt; on another node, if any is."""
    there = [other for other in nodes if other.agent.connected and other is not node]
    ring = [other for other in there if _place(other) > _place(node)]
    ring += [other for other in there if _place(other) < _place(node)]
    ring = [other for other in ring if other.pod.node != node.pod.node] or ring
    if not ring:
        return None
    chosen = ring[(attempt - 1) % len(ring)]
    return Neighbour(chosen.pod.name, chosen.report.host, chosen.found.port, chosen.found.key)


def resting(run: Draft) -> set[int]:
    """Indexes for which no pod is created now, because those before were rejected."""
    left = {known.index: seconds(known.until) - run.now for known in run.status.rejections if known.until}
    for delay in left.values():
        if delay > 0:
            run.wake_in(delay)
    return {index for index, delay in left.items() if delay > 0}


def _reject(run: Draft, pod: PodView, why: str) -> None:
    """Have another pod in its place, later and later; a job that has never trained fails over it in the end."""
    run.unproven[pod.uid] = f"pre-flight: rejected, {why}"
    run.actions.append(DeletePod(pod.name, pod.uid, f"pre-flight: {why}"))
    if pod.uid in run.status.ended_pods:
        return
    run.note_ended([pod.uid])
    text = f"{pod.name} on node {pod.node or 'unknown'}: {why}"
    count = _record(run, pod.index, text)
    run.condition("PreflightPassed", False, REASON, text)
    if count > run.spec.recovery.max_restarts and not run.status.rounds:
        finish(run, "Failed", REASON, f"{count} pods of member {pod.index} were rejected in a row; last: {text}")
    else:
        run.tell(REASON, f"it may not join and is replaced: {text}", warning=True)
        avoid(run, pod.node, REASON)


def _record(run: Draft, index: int, text: str) -> int:
    others = [known for known in run.status.rejections if known.index != index]
    count = 1 + sum(known.count for known in run.status.rejections if known.index == index)
    pause = failure.pause(count)
    until = timestamp(run.now + pause) if pause else None
    new = RejectionStatus(index=index, count=count, message=short(text), until=until)
    run.set(rejections=tuple(sorted([*others, new], key=lambda known: known.index)))
    return count


def _say_how_it_stands(run: Draft, nodes: list[_Node], wanting: Mapping[str, str], wanted: set[int]) -> None:
    """Once every wanted member has been measured and may join: until then a rejection is the news."""
    proven = [node for node in nodes if node.found.attempt and node.pod.uid not in run.unproven]
    if not proven or not {node.pod.index for node in proven} >= wanted:
        return
    pods = (node.pod for node in proven if node.pod.uid in wanting)
    slow = [f"{pod.name} on node {pod.node}: {wanting[pod.uid]}" for pod in pods]
    if slow:
        text = f"too late to be rejected, having joined before the others were measured: {'; '.join(slow)}"
        run.condition("PreflightPassed", False, "SlowMember", text)
    else:
        text = f"{len(proven)} nodes were measured, at the median: {preflight.medians(node.found for node in proven)}"
        run.condition("PreflightPassed", True, "Passed", text)
