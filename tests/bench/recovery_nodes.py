"""Our side of `make bench-recovery` on real kubelets: nodes go off, are cut off and drained under a job of three.

The cluster has Kubernetes' own patience: 50 s until a silent node counts as lost, 300 s until its pods are given up.
Steps are dated by the snapshots in the members' memory, which this machine sees through the nodes' file systems.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from devcluster import charts
from devcluster.chaos import SYSTEM
from devcluster.cluster import Cluster, ClusterNode
from tests.bench.recovery_steps import Snapshots, Trial, Trials, recovered, undisturbed
from tests.bench.report import ROOT
from tests.support.jobs import APART, FOREVER, job, nodes_of
from tests.support.kube import Kubectl
from tests.support.leadership import await_leader

MEMBERS: Final = 3
_STORES: Final = "var/lib/kubelet/pods/*/volumes/kubernetes.io~empty-dir/flash"


class Site:
    """The cluster with a job that trains on and on."""

    def __init__(self, cluster: Cluster, steps: Snapshots) -> None:
        self.joins: Trials = []  # the pause each time that a replacement joined
        self._cluster, self._steps = cluster, steps
        self._kubectl = Kubectl(cluster.kubectl, cluster.kubeconfig)
        self._system = Kubectl(cluster.kubectl, cluster.kubeconfig, SYSTEM)

    def begin(self) -> None:
        spread = {"spec": {"affinity": {"podAntiAffinity": APART}}}
        # The same nodes fail again and again here, and are not to blame.
        again = {"avoidNodes": False, "maxRestarts": 1000}
        self._kubectl.apply(job(steps=FOREVER, nodes={"min": 1, "max": MEMBERS}, template=spread, recovery=again))

    def off(self) -> Trial:
        """A member's power is cut; not the leader's, whose loss is another fault."""
        return self._fault(self._bystander(), ClusterNode.off, ClusterNode.on)

    def partition(self) -> Trial:
        """A member's cable is cut."""
        return self._fault(self._bystander(), ClusterNode.partition, ClusterNode.heal)

    def leader_off(self) -> Trial:
        """The power of a node with the leading operator and a member."""
        return self._fault(self._leaders(), ClusterNode.off, ClusterNode.on)

    def drain(self) -> Trial:
        """A member is evicted; the others go on when it has left at a step boundary."""
        self._settle()
        last = self._steps.seen[-1]
        node = self._bystander()
        chosen = ("--pod-selector=llmtrain.io/job=j", "--delete-emptydir-data", "--force", "--timeout=120s")
        self._kubectl("drain", node.name, *chosen, timeout=130)
        after = self._steps.until(lambda step: step.round > last.round, last.at, "a step after the drain")
        self._kubectl("uncordon", node.name)
        return self._steps.pause(after)

    def _fault(
        self, node: ClusterNode, how: Callable[[ClusterNode], None], undo: Callable[[ClusterNode], None]
    ) -> Trial:
        self._settle()
        last = self._steps.seen[-1]
        began = time.time()
        how(node)
        try:
            # The one that is cut off may have done more, which nobody will ever see.
            after = self._steps.until(lambda step: step.round > last.round, began, "a step after the fault")
            lost, told = recovered(self._status, last.round)
        finally:
            undo(node)
        self.joins.append(
            self._steps.pause(self._steps.until(lambda step: step.workers == MEMBERS, after.at, "a third"))
        )
        return Trial(after.at - began - self._steps.pace(began), self._steps.again(after), lost, told)

    def _settle(self) -> None:
        self._system("rollout", "status", "deploy/llmtrain", "--timeout=120s", timeout=130)
        undisturbed(self._status, MEMBERS)

    def _status(self) -> dict[str, Any]:
        found: dict[str, Any] = self._kubectl.get("ltj", "j").get("status") or {}
        return found

    def _leaders(self) -> ClusterNode:
        return self._cluster.node(self._system.get("pod", await_leader(self._system))["spec"]["nodeName"])

    def _bystander(self) -> ClusterNode:
        leading = self._leaders().name
        return self._cluster.node(min(name for name in nodes_of(self._kubectl) if name != leading))


@contextlib.contextmanager
def site() -> Iterator[Site]:
    """A cluster of its own, with the chart installed and the job applied."""
    with Cluster("bench-recovery", print, nodes=MEMBERS, grace_seconds=50, toleration_seconds=300) as cluster:
        charts.install(cluster.kubeconfig, ROOT / "charts" / "llmtrain", "llmtrain", SYSTEM, charts.DEV_VALUES)

        def stores() -> Iterator[Path]:
            for node in cluster.nodes:
                yield from node.machine.root.glob(_STORES)

        with Snapshots(stores) as steps:
            found = Site(cluster, steps)
            found.begin()
            yield found


def trials(count: int) -> dict[str, Trials]:
    """Every fault `count` times."""
    with site() as there:
        faults = {"off": there.off, "partition": there.partition, "leader": there.leader_off, "drain": there.drain}
        return {name: [fault() for _ in range(count)] for name, fault in faults.items()} | {"joins": there.joins}
