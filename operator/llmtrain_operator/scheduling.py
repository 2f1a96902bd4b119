"""`spec.scheduling` made real: what members' pods carry, the group object beside them, and what the cluster lacks.

Pure. A gang's size is fixed when its pods are created and kept while any of them has a node, because the schedulers'
own groups cannot be resized: an edit of nodes.min or gang takes effect once all members wait. Members beyond nodes.min
are placed as room comes, and so are spares, since any pod of the job may be a member. Kueue gets the first nodes.min
pods as one pod group and every further one as a pod of its own, which is how an elastic job fits its groups of fixed
size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from llmtrain_operator.api import JobSpec
from llmtrain_operator.api.scheduling import Scheduling
from llmtrain_operator.contract import names
from llmtrain_operator.state import JobView, Obstacle, PodView


@dataclass(frozen=True, slots=True)
class Api:
    """A resource that not every cluster serves: `api_version` as in manifests, `plural` as in URLs."""

    api_version: str
    plural: str


KUEUE: Final = (Api("kueue.x-k8s.io/v1beta2", "localqueues"), Api("kueue.x-k8s.io/v1beta1", "localqueues"))
KUEUE_GATE: Final = "kueue.x-k8s.io/admission"
GROUPS: Final = {
    "native": Api("scheduling.k8s.io/v1alpha2", "podgroups"),
    "coscheduling": Api("scheduling.x-k8s.io/v1alpha1", "podgroups"),
    "volcano": Api("scheduling.volcano.sh/v1beta1", "podgroups"),
}
OPTIONAL_APIS: Final = (*KUEUE, *GROUPS.values())
_SCHEDULERS: Final = {"coscheduling": "scheduler-plugins-scheduler", "volcano": "volcano"}
"""What the projects' own charts call their schedulers."""
_REMEDIES: Final = {
    "native": "Turn on the feature gates GenericWorkload and GangScheduling and this API version (Kubernetes 1.36)",
    "coscheduling": "Install scheduler-plugins with its coscheduling plugin",
    "volcano": "Install Volcano",
}
_MOST_OF_NAME: Final = 48
"""Characters of the job's name in its group's, which is a label's value: at most 63 with UID and size."""


def obstacle(spec: JobSpec, serves: Callable[[Api], bool]) -> Obstacle | None:
    """Why no pod may be created now: something that the spec asks for is not there. None if all of it is."""
    wanted = _of(spec)
    if _kueue(wanted) and not any(serves(api) for api in KUEUE):
        remedy = "Install Kueue with its pod integration, or remove spec.scheduling.queue"
        return Obstacle("QueueMissing", f"queue {wanted.queue} needs Kueue, and {_absent(KUEUE[0])}. {remedy}")
    group = GROUPS.get(wanted.gang)
    if group and not serves(group):
        remedy = f"{_REMEDIES[wanted.gang]}, or set spec.scheduling.gang to none"
        return Obstacle("GangSchedulerMissing", f"gang {wanted.gang} is asked for, and {_absent(group)}. {remedy}")
    return None


def _absent(api: Api) -> str:
    return f"the cluster does not serve {api.plural} of {api.api_version}"


def group_size(spec: JobSpec, pods: Sequence[PodView]) -> int:
    """How many members the job's group holds; 0 if there is none."""
    wanted = _of(spec)
    if wanted.gang == "none" and not _kueue(wanted):
        return 0
    placed = (pod for pod in pods if pod.scheduled and pod.usable)
    return next((pod.group_size for pod in placed), spec.nodes.min)


def may_avoid(spec: JobSpec) -> bool:
    """Whether members can be kept off nodes: not where the template names the node, nor with Kueue, which takes only
    like pods into a group and chooses nodes by flavours of its own."""
    pod = spec.template.get("spec")
    return not _kueue(_of(spec)) and not (isinstance(pod, Mapping) and pod.get("nodeName"))


def misgrouped(pods: Sequence[PodView], size: int) -> tuple[PodView, ...]:
    """Waiting pods of a group of another size, which would wait in vain."""
    waiting = (pod for pod in pods if not pod.scheduled and not pod.deleting)
    return tuple(pod for pod in waiting if pod.group_size != size)


def groups(job: JobView, spec: JobSpec, size: int) -> list[dict[str, Any]]:
    """The object that the gang's scheduler goes by, less labels and owner; none without a gang."""
    wanted = _of(spec)
    api = GROUPS.get(wanted.gang)
    if api is None or not size:
        return []
    body: dict[str, Any] = {"minMember": size}
    if wanted.gang == "native":
        body = {"schedulingPolicy": {"gang": {"minCount": size}}}
    elif wanted.gang == "volcano":
        body |= {"queue": wanted.queue} if wanted.queue else {}
        body |= {"priorityClassName": wanted.priority_class_name} if wanted.priority_class_name else {}
    metadata = {"name": group_name(job, size)}
    return [{"apiVersion": api.api_version, "kind": "PodGroup", "metadata": metadata, "spec": body}]


def group_name(job: JobView, size: int) -> str:
    """The name of the job's group, another one for each size, and for each job that ever had the name."""
    return f"{job.name[:_MOST_OF_NAME]}-{job.uid[:8]}-{size}"


def placement(job: JobView, spec: JobSpec, index: int, size: int, selector: dict[str, str]) -> dict[str, Any]:
    """What the pod of member `index` carries for its place: {metadata, spec} to be merged into it.

    `selector`: the labels by which the members are told from other pods.
    """
    wanted, name = _of(spec), group_name(job, size)
    labels: dict[str, str] = {}
    annotations = {names.ANNOTATION_GROUP_SIZE: str(size)} if size else {}
    pod: dict[str, Any] = _topology(wanted, selector)
    scheduler = wanted.scheduler_name or _SCHEDULERS.get(wanted.gang)
    pod |= {"schedulerName": scheduler} if scheduler else {}
    pod |= {"priorityClassName": wanted.priority_class_name} if wanted.priority_class_name else {}
    match wanted.gang if size else "none":
        case "native":
            pod["schedulingGroup"] = {"podGroupName": name}
        case "coscheduling":
            labels["scheduling.x-k8s.io/pod-group"] = name
        case "volcano":
            annotations["scheduling.k8s.io/group-name"] = name
    if _kueue(wanted):
        labels["kueue.x-k8s.io/queue-name"] = str(wanted.queue)
        # Ours too: should Kueue's pod integration be off, the pod waits instead of passing the queue by.
        pod["schedulingGates"] = [{"name": KUEUE_GATE}]
        if index < size:
            labels["kueue.x-k8s.io/pod-group-name"] = name
            annotations["kueue.x-k8s.io/pod-group-total-count"] = str(size)
    return {"metadata": {"labels": labels, "annotations": annotations}, "spec": pod}


def _of(spec: JobSpec) -> Scheduling:
    return spec.scheduling or Scheduling()


def _kueue(wanted: Scheduling) -> bool:
    """Whether the queue is Kueue's: Volcano has queues of its own."""
    return wanted.queue is not None and wanted.gang != "volcano"


def _topology(wanted: Scheduling, selector: dict[str, str]) -> dict[str, Any]:
    topology = wanted.topology
    match = {"labelSelector": {"matchLabels": selector}, "topologyKey": topology.key}
    if topology.policy == "spread":
        unmet = "DoNotSchedule" if topology.required else "ScheduleAnyway"
        return {"topologySpreadConstraints": [{"maxSkew": 1, "whenUnsatisfiable": unmet, **match}]}
    if topology.required:
        return {"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [match]}}}
    preferred = [{"weight": 100, "podAffinityTerm": match}]
    return {"affinity": {"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}}}
