"""Nodes that fail the job again and again: counted, avoided for a while, and allowed again when it cannot do without.

To avoid a node is a wish about new pods: who is there already stays, and waiting pods are made anew when it changes.
"""

from __future__ import annotations

from collections.abc import Iterable

from llmtrain_operator import avoidance, membership, scheduling
from llmtrain_operator.conditions import seconds
from llmtrain_operator.contract import names
from llmtrain_operator.plan.blame import Blame
from llmtrain_operator.plan.draft import Draft


def hold_against(run: Draft, nodes: Iterable[str], reason: str) -> None:
    """Note that these nodes have failed the job once more, and avoid those that stand out. `reason` is PascalCase."""
    if not _may_avoid(run):
        return
    for node in dict.fromkeys(node for node in nodes if node):
        run.set(node_failures=avoidance.noted(run.status.node_failures, node, reason, run.now))
        if node not in avoided(run) and avoidance.stands_out(run.status.node_failures, node, _used(run), run.now):
            avoid(run, node, reason)


def avoid(run: Draft, node: str, reason: str) -> None:
    """Keep new pods off this node for a while, unless too many are avoided already."""
    if not _may_avoid(run) or not avoidance.bearable(run.status.avoided_nodes, _used(run)):
        return
    status = run.status
    run.set(avoided_nodes=avoidance.avoiding(status.avoided_nodes, status.node_failures, node, reason, run.now))
    made = run.status.avoided_nodes[-1]
    more = f", {made.failures} failures within a day" if made.failures else ""
    run.tell("NodeAvoided", f"node {node} is avoided until {made.until}: {reason}{more}", warning=True)


def avoided(run: Draft) -> tuple[str, ...]:
    """The names of the nodes that new pods are kept off."""
    return tuple(sorted(one.node for one in run.status.avoided_nodes))


def expire(run: Draft) -> None:
    """Allow again what was avoided for long enough, or is not to be avoided any more."""
    kept = avoidance.in_force(run.status.avoided_nodes, run.now) if _may_avoid(run) else ()
    run.set(avoided_nodes=kept)
    for one in kept:
        run.wake_in(seconds(one.until) - run.now)


def give_way(run: Draft, waited: float) -> None:
    """Members without a place have been waited for in vain, too few are left to train: better a node that fails now and
    then than none."""
    nodes = avoided(run)
    if not nodes:
        return
    if (left := membership.HOPELESS_PATIENCE - waited) > 0:
        run.wake_in(left)
        return
    # What they did is forgotten too, else they would be avoided again at the next failure, in vain.
    failures = avoidance.forgotten(run.status.node_failures, frozenset(nodes))
    run.set(avoided_nodes=(), node_failures=failures)
    text = f"fewer than nodes.min members have a place, so these nodes are not avoided any more: {', '.join(nodes)}"
    run.tell("AvoidanceGivesWay", text, warning=True)


def guilty(run: Draft, found: Blame, lost: tuple[membership.Loss, ...]) -> list[str]:
    """The nodes that may be the cause of the loss of the round: those of members that fell silent or broke, or that of
    the one whose worker ended as on a broken machine."""
    assert run.status.round is not None
    uids = {loss.member.uid for loss in lost if loss.node_fault}
    if found.cause.reason != names.REASON_POD_LOST:
        uids = {found.member.uid} if avoidance.speaks_against_node(found.cause) else set()
    return [member.node for member in run.status.round.members if member.uid in uids]


def _may_avoid(run: Draft) -> bool:
    return run.spec.recovery.avoid_nodes and run.observed.can_avoid and scheduling.may_avoid(run.spec)


def _used(run: Draft) -> frozenset[str]:
    """The nodes that the job is on, and those that it was on when they failed it."""
    members = run.status.round.members if run.status.round else ()
    there = {pod.node for pod in run.observed.pods} | {member.node for member in members}
    return frozenset(there | {one.node for one in run.status.node_failures}) - {""}
