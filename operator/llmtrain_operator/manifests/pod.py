"""A member's pod."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from llmtrain_operator import affinity, scheduling
from llmtrain_operator.api import JobSpec
from llmtrain_operator.contract import names
from llmtrain_operator.manifests import flash, volumes
from llmtrain_operator.manifests.container import DEFAULT_GRACE_SECONDS, has_own_command, init_containers, trainer
from llmtrain_operator.manifests.identity import common_labels, owner, pod_name, selector
from llmtrain_operator.manifests.settings import Settings
from llmtrain_operator.merge import merge
from llmtrain_operator.state import JobView

UID: Final = 65532


def member_pod(
    job: JobView,
    spec: JobSpec,
    index: int,
    incarnation: int,
    settings: Settings,
    group_size: int = 0,
    avoid: Sequence[str] = (),
) -> dict[str, Any]:
    """The pod of one member, the user's template merged in. `group_size`: see `scheduling`. `avoid`: names of nodes
    that it must not come to."""
    base = {
        "metadata": {"labels": {}},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": DEFAULT_GRACE_SECONDS,
            "enableServiceLinks": False,
            "automountServiceAccountToken": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": UID,
                "runAsGroup": UID,
                "fsGroup": UID,
                "fsGroupChangePolicy": "OnRootMismatch",
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "imagePullSecrets": [{"name": name} for name in settings.image_pull_secrets],
            "initContainers": init_containers(spec, settings),
            "containers": [trainer(job, spec, index, incarnation, settings)],
            "volumes": volumes.volumes(spec, settings),
        },
    }
    placed = merge(base, scheduling.placement(job, spec, index, group_size, selector(job)))
    pod: dict[str, Any] = merge(placed, spec.template)
    pod["apiVersion"], pod["kind"] = "v1", "Pod"
    labels = pod["metadata"].get("labels")
    pod["metadata"] |= {
        "name": pod_name(job, index, incarnation),
        "namespace": job.namespace,
        "ownerReferences": owner(job),
        "labels": (labels if isinstance(labels, dict) else {})
        | common_labels(job)
        | {names.LABEL_INDEX: str(index), names.LABEL_INCARNATION: str(incarnation)},
    }
    if avoid:
        annotations = pod["metadata"].get("annotations")
        ours = {names.ANNOTATION_AVOIDS: ",".join(avoid)}
        pod["metadata"]["annotations"] = (annotations if isinstance(annotations, dict) else {}) | ours
        pod["spec"] = affinity.keep_off(pod["spec"], avoid)
    flash.with_room(pod, spec)
    if settings.metrics_port and not has_own_command(spec):
        _with_metrics_port(pod, settings.metrics_port)
    pod["spec"] |= {
        "hostname": f"{job.name}-{index}",
        "subdomain": job.name,
        "serviceAccountName": pod["spec"].get("serviceAccountName", job.name),
    }
    return pod


def _with_metrics_port(pod: dict[str, Any], number: int) -> None:
    """Name the port by which a PodMonitor finds the agent's metrics, unless the user's own container has one of that
    name or number. On the node's network a port that is named is one that is taken, so that no two members could be on
    one node: there it is not named."""
    containers = pod["spec"].get("containers")
    if pod["spec"].get("hostNetwork") or not isinstance(containers, list):
        return
    for container in containers:
        if not isinstance(container, dict) or container.get("name") != names.CONTAINER:
            continue
        ports = container.get("ports") or []
        if not isinstance(ports, list) or any(_is_port(port, number) for port in ports):
            continue
        container["ports"] = [*ports, {"name": names.METRICS_PORT_NAME, "containerPort": number, "protocol": "TCP"}]


def _is_port(port: Any, number: int) -> bool:
    return isinstance(port, Mapping) and (
        port.get("name") == names.METRICS_PORT_NAME or port.get("containerPort") == number
    )
