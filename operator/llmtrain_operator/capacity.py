"""How many more members of a job the nodes have room for, as far as that can be told without asking the scheduler.

Pure. What counts: nodes that are ready, not cordoned, tolerated and selected by label, with what they offer less what
our members on them ask for. Pods of others are not known (that would take the right to list every pod, and the memory
for it), nor are affinities but "one member per node": so this is an upper bound that says when it is worth asking. The
answer is the scheduler's own: see `plan.autoscale`, which has a pod made and looks whether it gets a node.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from llmtrain_operator import quantity
from llmtrain_operator.contract import names
from llmtrain_operator.state import NodeView, PodView, Resources

PODS: Final = "pods"
_HOST: Final = "kubernetes.io/hostname"
_REPELLING: Final = ("NoSchedule", "NoExecute")


@dataclass(frozen=True, slots=True)
class Needs:
    """What a member's pod asks of a node. `tolerates`: pairs of key and effect, empty for any. `alone`: no two members
    of the job may share a node. `keeps_off`: names of nodes that it must not come to."""

    job: str
    requests: Resources = ()
    selector: tuple[tuple[str, str], ...] = ()
    tolerates: tuple[tuple[str, str], ...] = ()
    alone: bool = False
    keeps_off: tuple[str, ...] = ()


def amounts(quantities: Mapping[str, Any]) -> Resources:
    """Quantities by resource in thousandths, in order of their names; what is no quantity is left out."""
    found = ((name, quantity.thousandths(value)) for name, value in sorted(quantities.items()))
    return tuple((name, value) for name, value in found if value is not None)


def requests_of(pod_spec: Mapping[str, Any]) -> Resources:
    """What the scheduler counts for a pod: the sum of its containers and sidecars, or the most that an init container
    asks for, and the overhead. A limit without a request is one."""
    inits = [each for each in pod_spec.get("initContainers") or () if each.get("restartPolicy") != "Always"]
    sidecars = [each for each in pod_spec.get("initContainers") or () if each.get("restartPolicy") == "Always"]
    total: Counter[str] = Counter()
    for container in (*(pod_spec.get("containers") or ()), *sidecars):
        total.update(_asked(container))
    for init in inits:
        total |= Counter(_asked(init))
    total.update(dict(amounts(pod_spec.get("overhead") or {})))
    return tuple(sorted(total.items()))


def _asked(container: Mapping[str, Any]) -> dict[str, int]:
    given = container.get("resources") or {}
    return dict(amounts({**(given.get("limits") or {}), **(given.get("requests") or {})}))


def needs(pod: Mapping[str, Any]) -> Needs:
    """Of a member's pod as `manifests.member_pod` makes it."""
    metadata, spec = pod["metadata"], pod["spec"]
    tolerations = (t for t in spec.get("tolerations") or () if not t.get("tolerationSeconds"))
    return Needs(
        job=f"{metadata['namespace']}/{metadata['labels'][names.LABEL_JOB]}",
        requests=requests_of(spec),
        selector=tuple(sorted((spec.get("nodeSelector") or {}).items())),
        tolerates=tuple((t.get("key", ""), t.get("effect", "")) for t in tolerations),
        alone=_alone(spec, metadata["labels"]),
    )


def _alone(spec: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    apart = ((spec.get("affinity") or {}).get("podAntiAffinity") or {}).get(
        "requiredDuringSchedulingIgnoredDuringExecution"
    ) or ()
    return any(
        term.get("topologyKey") == _HOST
        and ((term.get("labelSelector") or {}).get("matchLabels") or {}).items() <= labels.items()
        for term in apart
    )


class Inventory:
    """What nodes offer and our members have of it, kept up to date by single changes. `version` grows with each that
    could make a difference."""

    def __init__(self) -> None:
        self.version = 0
        self._nodes: dict[str, NodeView] = {}
        self._taken: dict[str, Counter[str]] = {}  # by node: requests, and pods
        self._members: dict[str, Counter[str]] = {}  # by node: pods of each job

    def node_changed(self, name: str, new: NodeView | None) -> bool:
        """A node came, changed or (None) went. Whether it offers more than before, as far as that shows."""
        old = self._nodes.pop(name, None)
        if new is not None:
            self._nodes[name] = new
        self.version += 1
        return new is not None and _usable(new) and (old is None or _offer(old) != _offer(new))

    def pod_changed(self, old: PodView | None, new: PodView | None) -> bool:
        """A member's pod came, changed or (None) went. Whether that made room."""
        before, after = old if old and _holds(old) else None, new if new and _holds(new) else None
        if before and after and (before.node, before.requests) == (after.node, after.requests):
            return False
        for pod, sign in ((before, -1), (after, 1)):
            if pod is not None:
                self._count(pod, sign)
        self.version += before is not None or after is not None
        return before is not None

    def room(self, wanted: Needs, most: int) -> int:
        """How many more members with these needs there may be room for, `most` at most."""
        found = 0
        for node in self._nodes.values():
            if found >= most:
                break
            found += self._room_on(node, wanted, most - found)
        return min(found, most)

    def usable(self, name: str) -> bool:
        """Whether the node is ready and not cordoned."""
        return name in self._nodes and _usable(self._nodes[name])

    def fits_after(self, wanted: Needs, leaving: PodView) -> bool:
        """Whether a member with the needs `wanted` has room where this pod leaves."""
        node = self._nodes.get(leaving.node)
        freed = dict((*leaving.requests, (PODS, 1000)))
        return node is not None and self._room_on(node, wanted, 1, freed) > 0

    def _room_on(self, node: NodeView, wanted: Needs, most: int, freed: Mapping[str, int] | None = None) -> int:
        if not (_usable(node) and _tolerated(node, wanted) and node.name not in wanted.keeps_off):
            return 0
        if not set(wanted.selector) <= set(node.labels):
            return 0
        taken, offered = self._taken.get(node.name, Counter()), dict(node.allocatable)
        free = {name: offered.get(name, 0) - taken[name] + (freed or {}).get(name, 0) for name in offered}
        asked = dict((*wanted.requests, (PODS, 1000)))
        fits = min((free.get(name, 0) // amount for name, amount in asked.items() if amount), default=most)
        if wanted.alone:
            fits = min(fits, 1 - self._members.get(node.name, Counter())[wanted.job])
        return max(0, min(fits, most))

    def _count(self, pod: PodView, sign: int) -> None:
        taken = self._taken.setdefault(pod.node, Counter())
        for name, amount in (*pod.requests, (PODS, 1000)):
            taken[name] += sign * amount
        members = self._members.setdefault(pod.node, Counter())
        members[f"{pod.namespace}/{pod.job}"] += sign
        if not +members:
            del self._taken[pod.node], self._members[pod.node]


def _holds(pod: PodView) -> bool:
    return bool(pod.node) and not pod.ended


def _usable(node: NodeView) -> bool:
    return node.ready and node.schedulable


def _offer(node: NodeView) -> tuple[object, ...]:
    return node.ready, node.schedulable, node.taints, node.allocatable, node.labels


def _tolerated(node: NodeView, wanted: Needs) -> bool:
    return all(_tolerates(taint, wanted.tolerates) for taint in node.taints)


def _tolerates(taint: str, tolerations: Iterable[tuple[str, str]]) -> bool:
    key, _, effect = taint.rpartition(":")
    if effect not in _REPELLING:
        return True
    return any(known in ("", key) and which in ("", effect) for known, which in tolerations)
