"""Where the members are to be: which waiting pods have to be made anew for it, and what condition Scheduled says."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from llmtrain_operator import scheduling
from llmtrain_operator.conditions import find
from llmtrain_operator.plan.avoid import avoided
from llmtrain_operator.plan.draft import Draft
from llmtrain_operator.state import DeletePod, PodView

REFUSED: Final = "PodsRefused"


def regroup(run: Draft) -> tuple[PodView, ...]:
    """Delete waiting pods whose gang has another size now, or that keep off other nodes than they should. Returns all
    pods, those as being deleted."""
    pods, nodes = run.observed.pods, avoided(run)
    size = scheduling.group_size(run.spec, pods)
    why = f"the job's gang has {size} members now" if size else "the job has no gang any more"
    wrong = {pod.uid: why for pod in scheduling.misgrouped(pods, size)}
    for pod in pods:
        if not pod.scheduled and not pod.deleting and pod.avoids != nodes:
            wrong.setdefault(pod.uid, f"it is to avoid {', '.join(nodes) or 'no node any more'}")
    run.actions += [DeletePod(pod.name, pod.uid, wrong[pod.uid]) for pod in pods if pod.uid in wrong]
    return tuple(replace(pod, deleting=True) if pod.uid in wrong else pod for pod in pods)


def say_whether_scheduled(run: Draft) -> None:
    """Condition Scheduled: True when every wanted member has a node, else who keeps them from it, in their words."""
    before = find(run.status.conditions, "Scheduled")
    if before and before.reason == REFUSED and not run.observed.refused and _missing(run):
        return  # they are being tried again, and nothing is known of that yet
    value, reason, message = _judged(run)
    run.condition("Scheduled", value, reason, message)
    if run.observed.obstacle and (before is None or before.message != message):
        run.tell(reason, message, warning=True)


def _judged(run: Draft) -> tuple[bool, str, str]:
    if run.observed.obstacle:
        return False, run.observed.obstacle.reason, run.observed.obstacle.message
    pods = _present(run)
    placed = sum(pod.scheduled for pod in pods)
    if placed >= run.wanted:  # whoever has one may be a member, the others are spares
        return True, "AllPlaced", f"all {run.wanted} members have a node{_spares_placed(run, placed)}"
    count = f"{placed} of {run.wanted} members have a node"
    if run.observed.refused:
        return False, REFUSED, f"{count}; the API server refuses pods: {_once(run.observed.refused.values())}"
    waiting = [pod.unschedulable_message for pod in pods if not pod.scheduled]
    if held := [text for text in waiting if scheduling.KUEUE_GATE in text]:
        wanted = run.spec.scheduling
        return False, "Queued", f"{count}; queue {wanted.queue if wanted else ''} admits the others ({_once(held)})"
    return False, "Unschedulable" if any(waiting) else "WaitingForScheduler", f"{count}{_because(run, waiting)}"


def _spares_placed(run: Draft, placed: int) -> str:
    spares = run.spec.nodes.spares
    return f", and {min(spares, placed - run.wanted)} of {spares} spares" if spares else ""


def _present(run: Draft) -> list[PodView]:
    return [pod for pod in run.observed.pods if not pod.deleting and pod.phase != "Failed"]


def _missing(run: Draft) -> bool:
    return len(_present(run)) < run.wanted


def _because(run: Draft, waiting: list[str]) -> str:
    if any(waiting):
        nodes = ", ".join(avoided(run))
        return f"; {_once(waiting)}" + (f"; status.avoidedNodes: {nodes}" if nodes else "")
    scheduler = run.spec.scheduling.scheduler_name if run.spec.scheduling else None
    return f"; scheduler {scheduler} has not looked at the others" if waiting and scheduler else ""


def _once(texts: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(text for text in texts if text))
