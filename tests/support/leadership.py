"""Which of the installed operator's pods leads, and how to lose it."""

from __future__ import annotations

import time
from typing import Any

from devcluster.cluster import Cluster
from tests.support.kube import Kubectl

LEASE = "llmtrain"


def holder(system: Kubectl) -> str:
    """The pod that leads, empty if none does. `system` is kubectl in the operator's namespace."""
    spec: dict[str, Any] = system.get("lease", LEASE).get("spec", {})
    return str(spec.get("holderIdentity") or "").rpartition("_")[0]


def await_leader(system: Kubectl, *, but: str = "", within: float = 30.0) -> str:
    """The leading pod, once one other than `but` leads."""
    deadline = time.monotonic() + within
    while (found := holder(system)) in ("", but):
        assert time.monotonic() < deadline, f"no leader but {but or 'none'} within {within} s"
        time.sleep(0.05)
    return found


def kill(cluster: Cluster, system: Kubectl, pod: str) -> None:
    """SIGKILL to every process of the pod, so that it says no goodbye, and the pod deleted without grace."""
    found = system.get("pod", pod)
    cluster.node(found["spec"]["nodeName"]).kill_pod(found["metadata"]["uid"])
    system("delete", "pod", pod, "--force", "--grace-period=0", "--wait=false")
