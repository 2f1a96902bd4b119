"""Raw objects -> the few facts that are kept of them. Total: an odd object gives an odd view or None, never an error.

Strings that many pods share are interned, which halves the memory of a large cluster's views.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from sys import intern
from typing import Any, Final

from llmtrain_operator import capacity
from llmtrain_operator.cluster.resources import job_behind
from llmtrain_operator.contract import accelerators, names
from llmtrain_operator.state import NodeView, PodView, Resources

_USUAL_WAITS: Final = frozenset({"", "ContainerCreating", "PodInitializing"})
_KILLED: Final = 137

_ZONE: Final = "topology.kubernetes.io/zone"
_RACKS: Final = (
    "topology.kubernetes.io/rack",
    "topology.k8s.aws/network-node-layer-3",
    "cloud.google.com/gce-topology-subblock",
    "cloud.google.com/gce-topology-block",
    "oci.oraclecloud.com/rdma.local_block_id",
    "kubernetes.azure.com/placement-group",
)


def pod_view(raw: Mapping[str, Any]) -> PodView | None:
    """A member's pod; None if its labels do not make it one."""
    metadata, spec, status = raw["metadata"], raw.get("spec") or {}, raw.get("status") or {}
    labels = metadata.get("labels") or {}
    index, incarnation = labels.get(names.LABEL_INDEX, ""), labels.get(names.LABEL_INCARNATION, "")
    if not (labels.get(names.LABEL_JOB) and index.isdecimal() and incarnation.isdecimal()):
        return None
    conditions = _conditions(status)
    placement = conditions.get("PodScheduled", {})
    node = spec.get("nodeName", "")
    reason, message = _trouble(status, conditions)
    return PodView(
        name=metadata["name"],
        namespace=intern(metadata["namespace"]),
        uid=metadata["uid"],
        job=intern(labels[names.LABEL_JOB]),
        index=int(index),
        incarnation=int(incarnation),
        phase=intern(status.get("phase", "Pending")),
        ready=conditions.get("Ready", {}).get("status") == "True",
        node=intern(node),
        deleting="deletionTimestamp" in metadata,
        ip=status.get("podIP", ""),
        reason=intern(reason),
        message=message,
        exit_code=_exit_code(status),
        created=metadata.get("creationTimestamp", ""),
        scheduled=bool(node),
        unschedulable_message="" if node else intern(_unplaced(spec, placement)),
        owner=intern(str((job_behind(raw) or {}).get("uid", ""))),
        group_size=_number((metadata.get("annotations") or {}).get(names.ANNOTATION_GROUP_SIZE)),
        trainer=intern(_trainer_image(spec)),
        avoids=_listed((metadata.get("annotations") or {}).get(names.ANNOTATION_AVOIDS)),
        requests=_shared(capacity.requests_of(spec)),
        priority=spec.get("priority") or 0,
    )


@lru_cache(maxsize=4096)
def _shared(requests: Resources) -> Resources:
    """The same object for equal ones: a job's members all ask for the same."""
    return requests


def _trainer_image(spec: Mapping[str, Any]) -> str:
    """What the agent was copied in from, or else the container's own."""
    containers = [*(spec.get("initContainers") or ()), *(spec.get("containers") or ())]
    images = {container["name"]: container.get("image", "") for container in containers}
    return str(images.get(names.AGENT_CONTAINER) or images.get(names.CONTAINER, ""))


def node_view(raw: Mapping[str, Any]) -> NodeView:
    """A node, whoever runs on it."""
    status = raw.get("status") or {}
    return NodeView(
        name=raw["metadata"]["name"],
        uid=raw["metadata"]["uid"],
        ready=_conditions(status).get("Ready", {}).get("status") == "True",
        schedulable=not (raw.get("spec") or {}).get("unschedulable", False),
        boot_id=(status.get("nodeInfo") or {}).get("bootID", ""),
        domains=_domains(raw["metadata"].get("labels") or {}),
        taints=_taints((raw.get("spec") or {}).get("taints") or ()),
        accelerator_memory=_accelerator_memory(raw["metadata"].get("labels") or {}),
        labels=tuple((intern(k), intern(v)) for k, v in sorted((raw["metadata"].get("labels") or {}).items())),
        allocatable=_shared(capacity.amounts(status.get("allocatable") or {})),
    )


def _accelerator_memory(labels: Mapping[str, str]) -> int:
    """Bytes, by NVIDIA's feature discovery, which counts MiB, or else by the name of the product."""
    if counted := _number(labels.get("nvidia.com/gpu.memory")):
        return counted * 2**20
    named = (accelerators.find(labels[label]) for label in accelerators.PRODUCT_LABELS if label in labels)
    return next((kind.memory for kind in named if kind), 0)


def _taints(taints: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """Without their values, which are times and ids of events."""
    return tuple(intern(f"{taint.get('key', '')}:{taint.get('effect', '')}") for taint in taints)


def _domains(labels: Mapping[str, str]) -> tuple[str, str]:
    """Zone and rack. There is no one label for racks: clouds and sites each have their own."""
    rack = next((labels[label] for label in _RACKS if label in labels), "")
    return intern(labels.get(_ZONE, "")), intern(rack)


def job_view(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """The whole job object but for `managedFields`, which often outweigh all the rest."""
    return {**raw, "metadata": {k: v for k, v in raw["metadata"].items() if k != "managedFields"}}


def _unplaced(spec: Mapping[str, Any], placement: Mapping[str, Any]) -> str:
    """Why the pod has no node: who holds it back, by name, or what the scheduler says."""
    gates = [gate.get("name", "") for gate in spec.get("schedulingGates") or ()]
    return f"held back by scheduling gate {', '.join(gates)}" if gates else placement.get("message", "")


def _listed(text: str | None) -> tuple[str, ...]:
    return tuple(map(intern, text.split(","))) if text else ()


def _number(text: str | None) -> int:
    return int(text) if text and text.isdecimal() else 0


def _conditions(status: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {c.get("type", ""): c for c in status.get("conditions") or ()}


def _trouble(status: Mapping[str, Any], conditions: Mapping[str, Mapping[str, Any]]) -> tuple[str, str]:
    """Reason and message of what is wrong, most telling first: what was done to the pod, then its containers."""
    if status.get("reason"):
        return status["reason"], status.get("message", "")
    disruption = conditions.get("DisruptionTarget", {})
    if disruption.get("status") == "True":
        return disruption.get("reason", ""), disruption.get("message", "")
    containers = [*(status.get("containerStatuses") or ()), *(status.get("initContainerStatuses") or ())]
    containers.sort(key=lambda container: container.get("name") != names.CONTAINER)
    return _first(_end(c) for c in containers) or _first(_wait(c) for c in containers) or ("", "")


def _first(troubles: Iterable[tuple[str, str] | None]) -> tuple[str, str] | None:
    return next((trouble for trouble in troubles if trouble), None)


def _end(container: Mapping[str, Any]) -> tuple[str, str] | None:
    end = (container.get("state") or {}).get("terminated")
    if not end or end.get("exitCode", 0) == 0:
        return None
    reason, code = end.get("reason", "Error"), end["exitCode"]
    # After a node-wide shortage the kubelet calls every end of a container OOMKilled; only a SIGKILL can be one.
    if reason == "OOMKilled" and code != _KILLED:
        reason = "Error"
    words = end.get("message", "").strip() or f"exit code {code}"
    return reason, words if container.get("name") == names.CONTAINER else f"container {container.get('name')}: {words}"


def _wait(container: Mapping[str, Any]) -> tuple[str, str] | None:
    wait = (container.get("state") or {}).get("waiting") or {}
    if wait.get("reason", "") in _USUAL_WAITS:
        return None
    return wait["reason"], wait.get("message", "")


def _exit_code(status: Mapping[str, Any]) -> int | None:
    for container in status.get("containerStatuses") or ():
        if container.get("name") == names.CONTAINER:
            code = ((container.get("state") or {}).get("terminated") or {}).get("exitCode")
            return None if code is None else int(code)
    return None
