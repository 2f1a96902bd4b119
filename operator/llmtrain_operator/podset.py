"""Which member pods should exist: one live pod for every chosen index, none beyond, finished ones out of the way.

Pure. A pod of the current round is never deleted here; the round has to end first, and that has a reason of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from llmtrain_operator.state import CreatePod, DeletePod, PodView

OWN_ENDS = frozenset({"Error", "StartError", "ContainerCannotRun", "OOMKilled"})
"""How a pod ends through its own doing rather than its node's."""
_NONE: Mapping[str, str] = MappingProxyType({})

TAKEN_AWAY = frozenset({"PreemptionByScheduler", "Preempting", "EvictionByEvictionAPI", "Terminated", "NodeShutdown"})
"""How a pod ends because its node, or its place there, is wanted for something else."""


@dataclass(frozen=True, slots=True)
class PodSet:
    """`live`: the newest usable pod of each index. `create` and `delete`: what is missing and what is in the way."""

    live: Mapping[int, PodView]
    create: tuple[CreatePod, ...]
    delete: tuple[DeletePod, ...]
    incarnations: Mapping[str, int]


def slots(
    pods: Sequence[PodView], wanted: int, keep: Collection[int] = (), given_up: Collection[str] = ()
) -> tuple[int, ...]:
    """The indexes of the `wanted` pods: those to `keep` (the round's) first, then those whose pods have a place,
    then others; always the lowest. So a job that is made smaller because a node is gone loses no member that works.
    """
    placed = {pod.index for pod in pods if pod.usable and pod.scheduled and pod.uid not in given_up}
    order = dict.fromkeys([*sorted(keep), *sorted(placed), *range(wanted)])
    return tuple(sorted(list(order)[:wanted]))


def arrange(
    pods: Sequence[PodView],
    indexes: Collection[int],
    in_round: Collection[str],
    incarnations: Mapping[str, int],
    refused: Collection[int] = (),
    given_up: Mapping[str, str] = _NONE,
) -> PodSet:
    """The pods to keep, create and delete for members of these `indexes`.

    `in_round`: UIDs of the pods that are not to be deleted now, the current round's. `incarnations`: the last one used,
    by index as a string. `refused`: indexes not to be created now. `given_up`: UIDs of pods that others are to take the
    place of although they look alive, and why.
    """
    live = _newest(pod for pod in pods if pod.usable and pod.uid not in given_up)
    delete = tuple(
        DeletePod(pod.name, pod.uid, why)
        for pod in pods
        if not pod.deleting and pod.uid not in in_round and (why := _superfluous(pod, live, indexes, given_up))
    )
    used = dict(incarnations)
    create = []
    for index in sorted(indexes):
        # A pod of the round that succeeded is not replaced while the others finish.
        if index in live or index in refused or any(pod.index == index and pod.uid in in_round for pod in pods):
            continue
        last = max([used.get(str(index), 0), *(pod.incarnation for pod in pods if pod.index == index)])
        used[str(index)] = last + 1
        create.append(CreatePod(index, last + 1))
    kept = {index: pod for index, pod in live.items() if index in indexes or pod.uid in in_round}
    return PodSet(kept, tuple(create), delete, used)


def _newest(pods: Iterable[PodView]) -> dict[int, PodView]:
    newest: dict[int, PodView] = {}
    for pod in sorted(pods, key=lambda pod: pod.incarnation):
        newest[pod.index] = pod
    return newest


def _superfluous(
    pod: PodView, live: Mapping[int, PodView], indexes: Collection[int], given_up: Mapping[str, str]
) -> str:
    if pod.ended:
        return f"it ended ({pod.reason or pod.phase}) and is being replaced"
    if pod.index not in indexes:
        return f"the job wants {len(indexes)} pods"
    successor = live.get(pod.index)
    if successor is None:
        return f"{given_up[pod.uid]}; a new pod takes its place"
    return f"{successor.name} took its place" if successor.uid != pod.uid else ""


def waiting_on(pod: PodView | None) -> str:
    """What a member that is not ready yet is doing, in plain words."""
    if pod is None:
        return "no pod yet"
    if not pod.scheduled:
        return f"not scheduled: {pod.unschedulable_message or 'waiting for the scheduler'}"
    if pod.reason:
        return f"{pod.reason}: {pod.message}" if pod.message else pod.reason
    return "starting" if pod.phase == "Running" else f"{pod.phase.lower()} on {pod.node}"


def hopeless(pod: PodView | None) -> bool:
    """Whether waiting a little longer for this pod gains nothing: the scheduler found no place for it."""
    return pod is not None and not pod.scheduled and bool(pod.unschedulable_message)
