"""Jobs on a cluster that train a tiny model, and what can be seen of them from outside."""

from __future__ import annotations

from typing import Any

from devcluster.cluster import Cluster
from tests.support.kube import Kubectl
from tests.support.specs import tiny

FOREVER = 100_000
REQUESTS = {"spec": {"containers": [{"name": "trainer", "resources": {"requests": {"cpu": "500m"}}}]}}
"""Without it an operator that starts beside the members leaves them no processor for seconds, and steps of 20 ms that
stand still for 3 s are a fault."""
APART = {
    "requiredDuringSchedulingIgnoredDuringExecution": [
        {"labelSelector": {"matchLabels": {"llmtrain.io/job": "j"}}, "topologyKey": "kubernetes.io/hostname"}
    ]
}
SPREAD = {"spec": {"affinity": {"podAntiAffinity": APART}}}


def claim(name: str) -> dict[str, Any]:
    """A volume for the members of jobs, on whatever nodes they are."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "storageClassName": "shared",
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }


def job(name: str = "j", *, steps: int = 20, members: int = 2, **spec: Any) -> dict[str, Any]:
    """A tiny model on the JSON package of Python's standard library."""
    return {
        "apiVersion": "llmtrain.io/v1alpha1",
        "kind": "LLMTrainJob",
        "metadata": {"name": name},
        "spec": tiny(steps, members, "/usr/lib/python3.11/json") | spec,
    }


def members(kubectl: Kubectl) -> dict[str, dict[str, Any]]:
    """The job's pods by name."""
    return {pod["metadata"]["name"]: pod for pod in kubectl.items("pod", "llmtrain.io/job=j")}


def workers(cluster: Cluster, node: str, command: str = "llmtrain_trainer[.]train") -> list[int]:
    """Process ids, on the node, of the training processes there, or of what else has such a command line."""
    found = cluster.node(node).run(["sh", "-c", f"pgrep -f '{command}' || true"])
    return [int(pid) for pid in found.split()]


def nodes_of(kubectl: Kubectl) -> dict[str, int]:
    """Index of the member on each node."""
    pods = members(kubectl).values()
    return {p["spec"]["nodeName"]: int(p["metadata"]["labels"]["llmtrain.io/member-index"]) for p in pods}


def events(kubectl: Kubectl, reason: str) -> list[str]:
    """What was said under this reason."""
    return [event["message"] for event in kubectl.items("event") if event["reason"] == reason]


def until_training(kubectl: Kubectl) -> None:
    """Return when the job j has done a step."""
    kubectl.wait("ltj/j", "jsonpath={.status.state}=Running")
    kubectl.wait("ltj/j", "condition=Running")
