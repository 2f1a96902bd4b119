"""The containers of a member's pod, and what their processes find in the environment."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from llmtrain_operator import places
from llmtrain_operator.api import JobSpec
from llmtrain_operator.contract import names
from llmtrain_operator.manifests.identity import pod_name
from llmtrain_operator.manifests.settings import Settings, has_own_image
from llmtrain_operator.manifests.volumes import AGENT_DIRECTORY, CACHE_DIRECTORY, TOKEN_DIRECTORY, mounts
from llmtrain_operator.state import JobView

DEFAULT_GRACE_SECONDS: Final = 60
KILL_MARGIN_SECONDS: Final = 5
"""The agent kills its workers this long before the kubelet would kill the agent, so that it can still report."""


def init_containers(spec: JobSpec, settings: Settings) -> list[dict[str, Any]]:
    """A user's own image lacks the agent: it is copied in from the operator's image."""
    if not has_own_image(spec, settings):
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


def trainer(job: JobView, spec: JobSpec, index: int, incarnation: int, settings: Settings) -> dict[str, Any]:
    """The one in which agent and workers run."""
    foreign = has_own_image(spec, settings)
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
        "volumeMounts": mounts(spec, settings),
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
        names.ENV_TOKEN_FILE: f"{TOKEN_DIRECTORY}/token",
        names.ENV_DATA_CACHE: f"{CACHE_DIRECTORY}/data",
        **({names.ENV_METRICS_PORT: str(settings.metrics_port)} if settings.metrics_port else {}),
        names.ENV_GRACE_SECONDS: str(max(1, grace - KILL_MARGIN_SECONDS)),
        **({names.ENV_FLASH: names.FLASH_DIRECTORY} if spec.checkpoint.flash.enabled else {}),
        "HOME": "/tmp",
        "PYTHONUNBUFFERED": "1",
        **({"PYTHONPATH": AGENT_DIRECTORY} if has_own_image(spec, settings) else {}),
        **(torchrun_environment(job, spec) if has_own_command(spec) else {}),
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


def has_own_command(spec: JobSpec) -> bool:
    """Whether the user's template has a command in the place of the agent."""
    containers = _template_of_pod(spec).get("containers")
    named = (c for c in containers if isinstance(c, Mapping)) if isinstance(containers, list) else ()
    return any(container.get("name") == names.CONTAINER and container.get("command") for container in named)


def _template_of_pod(spec: JobSpec) -> Mapping[str, Any]:
    pod = spec.template.get("spec")
    return pod if isinstance(pod, Mapping) else {}
