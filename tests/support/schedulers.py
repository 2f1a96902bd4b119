"""Stand-ins for what cannot be had here: Kueue, scheduler-plugins and Volcano, as far as a job of ours meets them.

The definitions carry the true groups, versions, kinds and the fields that matter; each stand-in goes by what it reads
from the API server alone. They show that we say what those projects' documentation asks for, not that they heed it.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from llmtrain_operator.cluster.client import Client, NotFound
from llmtrain_operator.cluster.resources import PODS, Resource

CRDS = Resource("CustomResourceDefinition", "apiextensions.k8s.io/v1", "customresourcedefinitions", namespaced=False)
GATE = "kueue.x-k8s.io/admission"

_POD_GROUP = {
    "type": "object",
    "properties": {
        "spec": {
            "type": "object",
            "properties": {
                "minMember": {"type": "integer", "format": "int32"},
                "scheduleTimeoutSeconds": {"type": "integer", "format": "int32"},
                "queue": {"type": "string"},
                "priorityClassName": {"type": "string"},
            },
        },
        "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
    },
}
_LOCAL_QUEUE = {
    "type": "object",
    "properties": {"spec": {"type": "object", "properties": {"clusterQueue": {"type": "string"}}}},
}


def definition(group: str, version: str, kind: str, plural: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    """A CustomResourceDefinition."""
    names = {"kind": kind, "plural": plural, "singular": kind.lower(), "listKind": f"{kind}List"}
    served = {"name": version, "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    # Groups below k8s.io are accepted only with a word about who approved them.
    annotations = {"api-approved.kubernetes.io": "unapproved, a stand-in for tests"}
    return {
        "apiVersion": CRDS.api_version,
        "kind": CRDS.kind,
        "metadata": {"name": f"{plural}.{group}", "annotations": annotations},
        "spec": {"group": group, "scope": "Namespaced", "names": names, "versions": [served]},
    }


COSCHEDULING = definition("scheduling.x-k8s.io", "v1alpha1", "PodGroup", "podgroups", _POD_GROUP)
VOLCANO = definition("scheduling.volcano.sh", "v1beta1", "PodGroup", "podgroups", _POD_GROUP)
KUEUE = definition("kueue.x-k8s.io", "v1beta1", "LocalQueue", "localqueues", _LOCAL_QUEUE)


class GangScheduler:
    """Gives the pods that name it a node, `room` of them at most, and none of a group before minMember can have one."""

    def __init__(self, client: Client, namespace: str, crd: Mapping[str, Any], scheduler: str) -> None:
        group, version = crd["spec"]["group"], crd["spec"]["versions"][0]["name"]
        self._groups = Resource("PodGroup", f"{group}/{version}", "podgroups")
        self._client, self._namespace, self._scheduler = client, namespace, scheduler
        self._named: Callable[[Mapping[str, Any]], str] = _by_label if group.endswith("x-k8s.io") else _by_annotation
        self.room = 0

    async def run(self) -> None:
        """Schedule until cancelled."""
        while True:
            await self._round()
            await asyncio.sleep(0.1)

    async def _round(self) -> None:
        answer = await self._client.request("list", PODS, self._namespace)
        pods = [pod for pod in answer["items"] if pod["spec"]["schedulerName"] == self._scheduler]
        waiting: dict[str, list[str]] = defaultdict(list)
        for pod in pods:
            if not pod["spec"].get("nodeName"):
                waiting[self._named(pod)].append(pod["metadata"]["name"])
        free = self.room - sum("nodeName" in pod["spec"] for pod in pods)
        for group, members in waiting.items():
            found = await self._client.request("get", self._groups, self._namespace, group)
            placed = sum(self._named(pod) == group for pod in pods) - len(members)
            if min(free, len(members)) + placed >= found["spec"]["minMember"]:
                for name in members[:free]:
                    await self._bind(name)

    async def _bind(self, pod: str) -> None:
        target = {"apiVersion": "v1", "kind": "Node", "name": "stand-in"}
        body = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": pod}, "target": target}
        await self._client.request("create", PODS, self._namespace, pod, subresource="binding", body=body)


def _by_label(pod: Mapping[str, Any]) -> str:
    return str(pod["metadata"]["labels"]["scheduling.x-k8s.io/pod-group"])


def _by_annotation(pod: Mapping[str, Any]) -> str:
    return str(pod["metadata"]["annotations"]["scheduling.k8s.io/group-name"])


class Kueue:
    """Admits pods of `queue`: a group when it is complete and fits into `quota`, a pod without one for itself."""

    def __init__(self, client: Client, namespace: str, queue: str) -> None:
        self._client, self._namespace, self._queue = client, namespace, queue
        self.quota = 0

    async def run(self) -> None:
        """Admit until cancelled."""
        while True:
            await self._round()
            await asyncio.sleep(0.1)

    async def _round(self) -> None:
        query = {"labelSelector": f"kueue.x-k8s.io/queue-name={self._queue}"}
        answer = await self._client.request("list", PODS, self._namespace, query=query)
        left = self.quota
        units: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
        for pod in answer["items"]:
            labels = pod["metadata"]["labels"]
            if not any(gate["name"] == GATE for gate in pod["spec"].get("schedulingGates") or ()):
                left -= 1
            else:
                units[labels.get("kueue.x-k8s.io/pod-group-name") or pod["metadata"]["name"]].append(pod)
        for pods in units.values():
            total = int(pods[0]["metadata"]["annotations"].get("kueue.x-k8s.io/pod-group-total-count", "1"))
            if len(pods) == total <= left:
                left -= total
                for pod in pods:
                    await self._admit(pod["metadata"]["name"])

    async def _admit(self, pod: str) -> None:
        try:
            await self._client.request("patch", PODS, self._namespace, pod, body={"spec": {"schedulingGates": None}})
        except NotFound:  # replaced meanwhile
            return
