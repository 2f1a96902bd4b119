"""Which taints say that a node is about to go, so that members leave it before they are made to.

Pure. A cordon (`spec.unschedulable`, taint `node.kubernetes.io/unschedulable`) says no such thing: it keeps newcomers
away, and whoever is there stays until the node is drained. Nor does `DeletionCandidateOfClusterAutoscaler`, which is
taken back as often as not.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

TAINTS: Final = (
    # kubernetes/autoscaler, utils/taints: on a node that is about to be drained and deleted.
    "ToBeDeletedByClusterAutoscaler",
    # karpenter.sh/docs/concepts/disruption: on a node that is being disrupted; before v1.0 the second.
    "karpenter.sh/disrupted",
    "karpenter.sh/disruption",
    # aws/aws-node-termination-handler, pkg/node (with TAINT_NODE): which notice it was.
    "aws-node-termination-handler/spot-itn",
    "aws-node-termination-handler/scheduled-maintenance",
    "aws-node-termination-handler/asg-lifecycle-termination",
    "aws-node-termination-handler/rebalance-recommendation",
    # GKE's maintenance handler (GoogleCloudPlatform/k8s-node-termination-handler): before host maintenance.
    "cloud.google.com/impending-node-termination",
    # learn.microsoft.com/azure/aks/node-auto-drain: on scheduled events; the second until the end of 2024.
    "remediator.kubernetes.azure.com/unschedulable",
    "remediator.aks.microsoft.com/unschedulable",
    # kubernetes.io/docs/concepts/cluster-administration/node-shutdown: set by people for a node that is down.
    "node.kubernetes.io/out-of-service",
)
"""Keys of the taints that count where an installation does not say otherwise."""
SOFT: Final = "PreferNoSchedule"
"""The effect that does not keep a replacement from coming back to the node."""


def notice(taints: Sequence[str], keys: Collection[str]) -> str:
    """The first of these taints (`key:Effect`) whose key is one of `keys`; empty if none is."""
    return next((taint for taint in taints if taint.rpartition(":")[0] in keys), "")


def is_soft(taint: str) -> bool:
    """Whether the scheduler may place pods there all the same."""
    return taint.rpartition(":")[2] == SOFT
