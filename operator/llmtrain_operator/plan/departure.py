"""Members on nodes that are about to go: who is to leave, and whether that would lose what they have done.

A node is left once for each notice, by the pods that were there when it came; that is on record. So a replacement that
lands there again, because it tolerates the taint or the taint only prefers other nodes, is left alone.
"""

from __future__ import annotations

from collections.abc import Mapping

from llmtrain_operator import departure
from llmtrain_operator.api import LeavingNodeStatus
from llmtrain_operator.plan.draft import Draft
from llmtrain_operator.plan.flash import covered, living, restorable
from llmtrain_operator.state import PodView


def note_departures(run: Draft) -> None:
    """Take in which nodes are about to go, tell of those that are new, and choose the pods that are to leave now."""
    # Forgotten only with the notice: a node that has no pod of ours any more may get one.
    lasting = {node.name: node for node in run.status.leaving_nodes if node.name in run.observed.leaving}
    pods = _usable(run)
    fresh = {}
    for name, taint in run.observed.leaving.items():
        here = tuple(sorted(uid for uid, pod in pods.items() if pod.node == name))
        if here and name not in lasting:
            fresh[name] = LeavingNodeStatus(name=name, taint=taint, pods=here)
    nodes = tuple(node for _, node in sorted((lasting | fresh).items()))
    run.set(leaving_nodes=nodes)
    reasons = {uid: f"its node {node.name} is leaving ({node.taint})" for node in nodes for uid in node.pods}
    run.departing = _free_to_go(run, {uid: why for uid, why in reasons.items() if uid in pods})
    for _, node in sorted(fresh.items()):
        _tell(run, node)


def _usable(run: Draft) -> dict[str, PodView]:
    return {uid: pod for uid, pod in run.pods.items() if pod.usable}


def _free_to_go(run: Draft, leaving: Mapping[str, str]) -> dict[str, str]:
    """Those of the `leaving` without whom nothing is lost: all if there is storage to save to, else as many as the
    others hold copies for. Who has to stay now may go when the next round has made copies elsewhere."""
    if run.resumable:
        return dict(leaving)
    flash, there = run.status.flash, living(run)
    if flash is None or restorable(run) is None:
        in_round = {member.uid for member in run.status.round.members} if run.status.round else set()
        return {uid: why for uid, why in leaving.items() if uid not in in_round}
    free = {}
    for uid, why in sorted(leaving.items()):
        if covered(flash, there - {uid}):
            there, free[uid] = there - {uid}, why
    return free


def _tell(run: Draft, node: LeavingNodeStatus) -> None:
    pods = run.pods
    names = ", ".join(sorted(pods[uid].name for uid in node.pods))
    text = f"node {node.name} is leaving ({node.taint}), and with it {names}"
    kept = [uid for uid in node.pods if uid not in run.departing]
    if kept:
        text += "; what they have done is nowhere else, so they stay until it is, or until they are made to go"
    else:
        text += "; replaced elsewhere once their state is saved"
    if departure.is_soft(node.taint):
        text += f". The taint is {departure.SOFT}: a replacement may come back to this node, and stays there then"
    run.tell("NodeLeaving", text, warning=bool(kept))
