"""`python -m devcluster chaos`: what `llmtrain chaos` does, and to whole nodes and the operator too.

Only for a cluster that is made to be broken. A fault that lasts is undone before the job is judged, also when this
program is interrupted.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final

from devcluster.cluster import Cluster, ClusterNode
from devcluster.errors import DevclusterError
from devcluster.kubeapi import ApiError
from llmtrain_operator.chaos.faults import FAULTS, Fault
from llmtrain_operator.chaos.hands import PodHand
from llmtrain_operator.chaos.run import Target
from llmtrain_operator.cli.chaos import Wish, carry_out
from llmtrain_operator.cluster.user import open_cluster
from llmtrain_operator.ports import Rejected
from llmtrain_operator.state import PodView

SYSTEM: Final = "llmtrain-system"
_LEASE: Final = "llmtrain"
_NODE_FAULTS: Final = ("power-off", "partition", "slow-network", "kill-operator")
_SLOW: Final = "10mbit"
_SUCCESSION: Final = 15.0
"""Seconds in which another replica leads and misses who went with the last one: 12 s (`make bench-recovery`)."""
NAMES: Final = (*(fault.name for fault in PodHand.faults), *_NODE_FAULTS)


class NodeHand:
    """Does faults to members' pods, to the nodes below them, and to the leading operator in namespace `system`."""

    faults: Final = tuple(FAULTS[name] for name in NAMES)

    def __init__(self, cluster: Cluster, pods: PodHand, system: str = SYSTEM) -> None:
        """`pods` does what needs no more than a pod."""
        self._cluster, self._pods, self._system = cluster, pods, system

    async def strike(self, fault: Fault, pod: PodView, worker: int, seconds: float) -> str:
        """See `llmtrain_operator.chaos.run.Hand`; returns when the fault is undone."""
        if fault.name not in _NODE_FAULTS:
            return await self._pods.strike(fault, pod, worker, seconds)
        try:
            if fault.name == "kill-operator":
                return await asyncio.to_thread(self._kill_leader)
            return await asyncio.to_thread(self._for_a_while, self._cluster.node(pod.node), fault.name, seconds)
        except (DevclusterError, ApiError) as error:
            raise Rejected(f"{fault.name} of {pod.node}: {error}") from error

    def _for_a_while(self, node: ClusterNode, what: str, seconds: float) -> str:
        """If the leading operator goes with it, so long that its successor notices the member before it is back."""
        if what == "partition" and self._leader()["spec"]["nodeName"] == node.name:
            seconds += _SUCCESSION
        return _do_and_undo(node, what, seconds)

    def _leader(self) -> dict[str, Any]:
        """Its pod. Raises `Rejected`."""
        lease = self._cluster.api.get(f"/apis/coordination.k8s.io/v1/namespaces/{self._system}/leases/{_LEASE}")
        name = str(lease["spec"].get("holderIdentity") or "").rpartition("_")[0]
        if not name:
            raise Rejected("no operator leads")
        pod: dict[str, Any] = self._cluster.api.get(self._path(name))
        return pod

    def _path(self, pod: str) -> str:
        return f"/api/v1/namespaces/{self._system}/pods/{pod}"

    def _kill_leader(self) -> str:
        pod = self._leader()
        name = pod["metadata"]["name"]
        self._cluster.node(pod["spec"]["nodeName"]).kill_pod(pod["metadata"]["uid"])
        self._cluster.api.text(self._path(name), "DELETE", {"gracePeriodSeconds": 0})
        return f"operator {name} killed"


def _do_and_undo(node: ClusterNode, what: str, seconds: float) -> str:
    done: tuple[Callable[[], None], Callable[[], None]] = {
        "power-off": (node.off, node.on),
        "partition": (node.partition, node.heal),
        "slow-network": (lambda: node.slow(_SLOW), lambda: node.slow(None)),
    }[what]
    do, undo = done
    try:
        do()
        time.sleep(seconds)
    finally:
        undo()
    return f"{what} of {node.name} for {seconds:g} s"


def run(cluster: Cluster, namespace: str, wish: Wish, *, as_json: bool) -> int:
    """Do it and print the report; the exit code."""

    async def work() -> int:
        async with open_cluster(cluster.kubeconfig, None) as user:
            hand = NodeHand(cluster, PodHand(user))
            return await carry_out(Target(user, namespace, wish.job), hand, wish, as_json=as_json)

    try:
        return asyncio.run(work())
    except Rejected as error:
        raise DevclusterError(str(error)) from error
