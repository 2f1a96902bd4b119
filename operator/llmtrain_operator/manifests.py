"""Job -> the Kubernetes objects that belong to it: member pods, headless Service, disruption budget, account, policy.

Pure. Every object is owned by the job, so deleting the job leaves nothing behind. Pods satisfy Pod Security
`restricted`. The user's template is merged by name into the generated pod and wins wherever both speak.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from llmtrain_operator import affinity, departure, estimate, network, places, quantity, scheduling
from llmtrain_operator.api import JobSpec
from llmtrain_operator.contract import names, uris
from llmtrain_operator.merge import merge
from llmtrain_operator.policy import UNLIMITED, Policy
from llmtrain_operator.state import JobView, PodView

UID: Final = 65532
DEFAULT_GRACE_SECONDS: Final = 60
KILL_MARGIN_SECONDS: Final = 5
"""The agent kills its workers this long before the kubelet would kill the agent, so that it can still report."""

AGENT_DIRECTORY: Final = "/llmtrain/agent"
_TOKEN_DIRECTORY: Final = "/var/run/secrets/llmtrain"
_CACHE_DIRECTORY: Final = "/var/lib/llmtrain"


@dataclass(frozen=True, slots=True)
class Settings:
    """What the installation, not the job, decides about pods."""

    trainer_image: str
    operator_image: str
    coordinator_urls: str
    coordinator_ca: str
    image_pull_policy: str = "IfNotPresent"
    image_pull_secrets: tuple[str, ...] = ()
    member_egress: tuple[network.Rule, ...] | None = None
    """Where every member may connect to, beside what its job needs; None: jobs get no NetworkPolicy."""
    can_avoid: bool = True
    """Whether pods can be kept off a node: not where all nodes are one machine."""
    policy: Policy = UNLIMITED
    """What each namespace is granted."""
    departure_taints: tuple[str, ...] = departure.TAINTS
    """Keys of the taints that say that a node is about to go."""
    metrics_port: int = names.METRICS_PORT
    """Where each member's agent serves its metrics; 0: nowhere, because all members are on one machine."""
    metrics_from: tuple[network.Rule, ...] = ()
    """Who may read them, as peers in a NetworkPolicy; nobody if empty."""


def pod_name(job: JobView, index: int, incarnation: int) -> str:
    """A name never used before: a dead node's pod object keeps its name for minutes."""
    return f"{job.name}-{index}-{incarnation}"


def selector(job: JobView) -> dict[str, str]:
    """The labels that all members of the job carry and nothing else does."""
    return {names.LABEL_JOB: job.name, names.LABEL_COMPONENT: "member"}


def children(
    job: JobView, spec: JobSpec, settings: Settings, group_size: int = 0, staying: int = 0
) -> list[dict[str, Any]]:
    """The objects beside the pods, in the order in which they are applied.

    `group_size`: see `scheduling`. `staying`: see `plan.budget`.
    """
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "automountServiceAccountToken": False}
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        # Members find each other before they are Ready, and a member is Ready only while it trains.
        "spec": {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": selector(job)},
    }
    budget = {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "spec": {
            "minAvailable": staying,
            "selector": {"matchLabels": selector(job)},
            "unhealthyPodEvictionPolicy": "AlwaysAllow",  # one that does not work cannot be missed
        },
    }
    objects: list[dict[str, Any]] = [account, service, budget]
    if settings.member_egress is not None:
        readers = settings.metrics_from if settings.metrics_port else ()
        rules = network.policy_spec(selector(job), spec, settings.member_egress, readers)
        objects.append({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "spec": rules})
    metadata = {
        "name": job.name,
        "namespace": job.namespace,
        "labels": _common_labels(job),
        "ownerReferences": _owner(job),
    }
    objects += scheduling.groups(job, spec, group_size)
    return [{**child, "metadata": {**metadata, **child.get("metadata", {})}} for child in objects]


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
            "initContainers": _init_containers(spec, settings),
            "containers": [_container(job, spec, index, incarnation, settings)],
            "volumes": _volumes(spec, settings),
        },
    }
    placed = merge(base, scheduling.placement(job, spec, index, group_size, selector(job)))
    pod: dict[str, Any] = merge(placed, spec.template)
    pod["apiVersion"], pod["kind"] = "v1", "Pod"
    labels = pod["metadata"].get("labels")
    pod["metadata"] |= {
        "name": pod_name(job, index, incarnation),
        "namespace": job.namespace,
        "ownerReferences": _owner(job),
        "labels": (labels if isinstance(labels, dict) else {})
        | _common_labels(job)
        | {names.LABEL_INDEX: str(index), names.LABEL_INCARNATION: str(incarnation)},
    }
    if avoid:
        annotations = pod["metadata"].get("annotations")
        ours = {names.ANNOTATION_AVOIDS: ",".join(avoid)}
        pod["metadata"]["annotations"] = (annotations if isinstance(annotations, dict) else {}) | ours
        pod["spec"] = affinity.keep_off(pod["spec"], avoid)
    _with_flash_memory(pod, spec)
    if settings.metrics_port and not _own_command(spec):
        _with_metrics_port(pod, settings.metrics_port)
    pod["spec"] |= {
        "hostname": f"{job.name}-{index}",
        "subdomain": job.name,
        "serviceAccountName": pod["spec"].get("serviceAccountName", job.name),
    }
    return pod


def _common_labels(job: JobView) -> dict[str, str]:
    return {
        names.LABEL_NAME: "llmtrain",
        names.LABEL_COMPONENT: "member",
        names.LABEL_MANAGED_BY: names.FIELD_MANAGER,
        names.LABEL_JOB: job.name,
    }


def _owner(job: JobView) -> list[dict[str, Any]]:
    return [
        {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "name": job.name,
            "uid": job.uid,
            "controller": True,
            "blockOwnerDeletion": True,
        }
    ]


def like(settings: Settings, spec: JobSpec, others: Collection[PodView]) -> Settings:
    """The settings by which the `others` of the job that live were made, as to the image: workers of two versions do
    not understand each other. After an upgrade that is the old one until the job has no pod left."""
    image = next((pod.trainer for pod in others if pod.trainer and pod.phase == "Running" and not pod.deleting), None)
    if image is None:
        return settings
    if spec.image is None or image == spec.image:  # ours then, if it is not now
        return replace(settings, trainer_image=image)
    return replace(settings, operator_image=image)


def _foreign_image(spec: JobSpec, settings: Settings) -> bool:
    return spec.image is not None and spec.image != settings.trainer_image


def _init_containers(spec: JobSpec, settings: Settings) -> list[dict[str, Any]]:
    """A user's own image lacks the agent: it is copied in from the operator's image."""
    if not _foreign_image(spec, settings):
        return []
    return [
        {
            "name": names.AGENT_CONTAINER,
            "image": settings.operator_image,
            "imagePullPolicy": settings.image_pull_policy,
            "command": ["cp", "-r", "/opt/llmtrain-agent/.", AGENT_DIRECTORY],
            "securityContext": _restricted(),
            "volumeMounts": [{"name": "agent", "mountPath": AGENT_DIRECTORY}],
        }
    ]


def _container(job: JobView, spec: JobSpec, index: int, incarnation: int, settings: Settings) -> dict[str, Any]:
    foreign = _foreign_image(spec, settings)
    resources: dict[str, Any] = {}
    if spec.nodes.accelerator_resource:
        resources = {"limits": {spec.nodes.accelerator_resource: str(spec.nodes.proc_per_node)}}
    return {
        "name": names.CONTAINER,
        "image": spec.image or settings.trainer_image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": list(agent_command(foreign=foreign)),
        "env": _environment(job, spec, index, incarnation, settings),
        "resources": resources,
        "securityContext": _restricted(),
        # The last lines of the log become the pod's message when the agent itself dies.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "shm", "mountPath": "/dev/shm"},
            {"name": "cache", "mountPath": _CACHE_DIRECTORY},
            {"name": "token", "mountPath": _TOKEN_DIRECTORY, "readOnly": True},
            *([{"name": "flash", "mountPath": names.FLASH_DIRECTORY}] if spec.checkpoint.flash.enabled else []),
            *({"name": _claim_volume(claim), "mountPath": uris.mount_path(claim)} for claim in places.claims(spec)),
            *([{"name": "agent", "mountPath": AGENT_DIRECTORY, "readOnly": True}] if foreign else []),
        ],
    }


def agent_command(*, foreign: bool) -> tuple[str, ...]:
    """The agent, in our image or in one of the user's (`foreign`), as the child of an init.

    As the first process itself it would be deaf to SIGTERM until its own handler stood, and a pod that is deleted while
    it starts would keep its devices for the whole grace period.
    """
    if foreign:
        return f"{AGENT_DIRECTORY}/catatonit", "--", "python3", "-u", "-m", "llmtrain_trainer.agent"
    return "catatonit", "--", "llmtrain-agent"


def _restricted() -> dict[str, Any]:
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def _environment(job: JobView, spec: JobSpec, index: int, incarnation: int, settings: Settings) -> list[dict[str, Any]]:
    grace = _template_of_pod(spec).get("terminationGracePeriodSeconds")
    grace = grace if isinstance(grace, int) else DEFAULT_GRACE_SECONDS
    values = {
        names.ENV_JOB: job.key,
        names.ENV_JOB_UID: job.uid,
        names.ENV_SPEC: json.dumps(spec.model_dump(mode="json", by_alias=True, exclude={"template"}), sort_keys=True),
        names.ENV_INDEX: str(index),
        names.ENV_INCARNATION: str(incarnation),
        names.ENV_POD_NAME: pod_name(job, index, incarnation),
        names.ENV_PROC_PER_NODE: str(spec.nodes.proc_per_node),
        names.ENV_COORDINATOR: settings.coordinator_urls,
        names.ENV_COORDINATOR_CA: settings.coordinator_ca,
        names.ENV_TOKEN_FILE: f"{_TOKEN_DIRECTORY}/token",
        names.ENV_DATA_CACHE: f"{_CACHE_DIRECTORY}/data",
        **({names.ENV_METRICS_PORT: str(settings.metrics_port)} if settings.metrics_port else {}),
        names.ENV_GRACE_SECONDS: str(max(1, grace - KILL_MARGIN_SECONDS)),
        **({names.ENV_FLASH: names.FLASH_DIRECTORY} if spec.checkpoint.flash.enabled else {}),
        "HOME": "/tmp",
        "PYTHONUNBUFFERED": "1",
        **({"PYTHONPATH": AGENT_DIRECTORY} if _foreign_image(spec, settings) else {}),
        **(torchrun_environment(job, spec) if _own_command(spec) else {}),
    }
    downward = {names.ENV_POD_UID: "metadata.uid", names.ENV_POD_IP: "status.podIP"}
    return [{"name": name, "value": value} for name, value in values.items()] + [
        *({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in downward.items()),
        *places.s3_environment(spec),
        *places.tracker_environment(spec),
    ]


def torchrun_environment(job: JobView, spec: JobSpec) -> dict[str, str]:
    """What makes a bare `torchrun script.py` rendezvous through the operator: torchrun's defaults for its options.

    Only for a command of the user's own: a script under our agent that calls torchrun itself means another one.
    """
    return {
        "PET_RDZV_BACKEND": names.TORCHRUN_BACKEND,
        "PET_RDZV_ID": job.name,
        "PET_NNODES": f"{spec.nodes.min}:{spec.nodes.maximum}",
        "PET_NPROC_PER_NODE": str(spec.nodes.proc_per_node),
        # The budget is kept by the operator; torchrun should not end the pod before that.
        "PET_MAX_RESTARTS": str(spec.recovery.max_restarts),
    }


def _own_command(spec: JobSpec) -> bool:
    containers = _template_of_pod(spec).get("containers")
    named = (c for c in containers if isinstance(c, Mapping)) if isinstance(containers, list) else ()
    return any(container.get("name") == names.CONTAINER and container.get("command") for container in named)


def _template_of_pod(spec: JobSpec) -> Mapping[str, Any]:
    pod = spec.template.get("spec")
    return pod if isinstance(pod, Mapping) else {}


def _claim_volume(claim: str) -> str:
    return f"claim-{claim}"[:63].rstrip("-.").replace(".", "-")


def flash_memory(spec: JobSpec) -> int | None:
    """Bytes for snapshots in each pod, None if there are none or nobody knows."""
    flash = spec.checkpoint.flash
    if not flash.enabled:
        return None
    if flash.memory is not None:
        return quantity.parse(flash.memory)
    return None if spec.entrypoint else estimate.flash_bytes(spec)


def _flash_volume(spec: JobSpec) -> list[dict[str, Any]]:
    if not spec.checkpoint.flash.enabled:
        return []
    size = flash_memory(spec)
    limit = {"sizeLimit": quantity.show(size)} if size else {}
    return [{"name": "flash", "emptyDir": {"medium": "Memory", **limit}}]


def _with_flash_memory(pod: dict[str, Any], spec: JobSpec) -> None:
    """What snapshots take is memory of the container, beside what the user has asked for: request it, and let the limit
    have room for it. A template of an odd shape is left to the API server."""
    size = flash_memory(spec)
    containers = pod["spec"].get("containers")
    if not size or not isinstance(containers, list):
        return
    for container in containers:
        if not isinstance(container, dict) or container.get("name") != names.CONTAINER:
            continue
        resources = container.get("resources")
        resources = dict(resources) if isinstance(resources, Mapping) else {}
        limits, requests = resources.get("limits"), resources.get("requests")
        limits = dict(limits) if isinstance(limits, Mapping) else {}
        requests = dict(requests) if isinstance(requests, Mapping) else {}
        # Without a request of its own the limit counts as one.
        asked = quantity.parse(requests.get("memory", limits.get("memory", "0")))
        if asked is not None:
            requests["memory"] = quantity.show(asked + size)
        if "memory" in limits and (allowed := quantity.parse(limits["memory"])) is not None:
            limits["memory"] = quantity.show(allowed + size)
        container["resources"] = {**resources, "requests": requests, **({"limits": limits} if limits else {})}


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


def _volumes(spec: JobSpec, settings: Settings) -> list[dict[str, Any]]:
    token = {"audience": names.TOKEN_AUDIENCE, "expirationSeconds": 3600, "path": "token"}
    volumes: list[dict[str, Any]] = [
        {"name": "tmp", "emptyDir": {}},
        {"name": "shm", "emptyDir": {"medium": "Memory"}},
        {"name": "cache", "emptyDir": {}},
        *_flash_volume(spec),
        {"name": "token", "projected": {"sources": [{"serviceAccountToken": token}]}},
    ]
    volumes += [
        {"name": _claim_volume(claim), "persistentVolumeClaim": {"claimName": claim}} for claim in places.claims(spec)
    ]
    if _foreign_image(spec, settings):
        volumes.append({"name": "agent", "emptyDir": {}})
    return volumes
