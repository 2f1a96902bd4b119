"""The short-lived pod that works on a job's checkpoints where they are, with what its members have to reach them. Pure.

It is a member's pod without what makes it one: no agent, no place in a round, a gang or a queue, no accelerator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from llmtrain_operator import manifests
from llmtrain_operator.api import JobSpec
from llmtrain_operator.contract import names
from llmtrain_operator.manifests import Settings
from llmtrain_operator.state import JobView

COMPONENT: Final = "checkpoints"
LIFETIME: Final = 3600
"""Seconds after which the kubelet ends it, should the command that made it be gone."""
_KEPT: Final = (
    *("automountServiceAccountToken", "enableServiceLinks", "imagePullSecrets", "nodeSelector", "securityContext"),
    *("serviceAccountName", "tolerations"),
)
_MEMBERS_OWN: Final = "LLMTRAIN_"
MEMORY: Final = "4Gi"


@dataclass(frozen=True, slots=True)
class Tool:
    """What runs: `python3 -m llmtrain_trainer.checkpoint` with `arguments`. `pull_secrets`: to pull the image with."""

    image: str
    arguments: Sequence[str]
    memory: str = MEMORY
    pull_secrets: tuple[str, ...] = ()


def tool_pod(job: JobView, spec: JobSpec, suffix: str, tool: Tool) -> dict[str, Any]:
    """The pod, with everything that the job's spec says of storage."""
    settings = Settings(tool.image, tool.image, "", "", image_pull_secrets=tool.pull_secrets)
    resources = {"cpu": "1", "memory": tool.memory}
    # The image of the members is not asked for: it may be one of the user's, without the tool.
    member = manifests.member_pod(job, spec.model_copy(update={"image": None}), 0, 0, settings)
    container = next(each for each in member["spec"]["containers"] if each["name"] == names.CONTAINER)
    mounts = [each for each in container["volumeMounts"] if each["name"] != "token"]
    mounted = {each["name"] for each in mounts}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{job.name}-checkpoints-{suffix}",
            "namespace": job.namespace,
            "labels": {names.LABEL_NAME: "llmtrain", names.LABEL_COMPONENT: COMPONENT},
            # Whatever becomes of the command: with the job it goes.
            "ownerReferences": [
                {"apiVersion": names.API_VERSION, "kind": names.KIND, "name": job.name, "uid": job.uid}
            ],
        },
        "spec": {key: member["spec"][key] for key in _KEPT if key in member["spec"]}
        | {
            "restartPolicy": "Never",
            "activeDeadlineSeconds": LIFETIME,
            "terminationGracePeriodSeconds": 1,
            "volumes": [each for each in member["spec"]["volumes"] if each["name"] in mounted],
            "containers": [
                {
                    "name": names.CONTAINER,
                    "image": tool.image,
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["python3", "-m", "llmtrain_trainer.checkpoint", *tool.arguments],
                    "env": [each for each in container["env"] if not each["name"].startswith(_MEMBERS_OWN)],
                    "envFrom": container.get("envFrom", []),
                    "resources": {"requests": resources, "limits": resources},
                    "securityContext": container.get("securityContext", {}),
                    "volumeMounts": mounts,
                }
            ],
        },
    }


def image_of(spec: JobSpec, pods: Sequence[Mapping[str, Any]], deployments: Sequence[Mapping[str, Any]]) -> str | None:
    """An image with the tool: the members' if it is not the user's own, else what the operator gives members."""
    if spec.image is None:
        for pod in pods:
            for container in pod["spec"]["containers"]:
                if container["name"] == names.CONTAINER:
                    return str(container["image"])
    for deployment in deployments:
        for container in deployment["spec"]["template"]["spec"]["containers"]:
            for word in container.get("command") or ():
                option, _, image = word.partition("=")
                if option == "--trainer-image":
                    return str(image)
    return None


def trouble_of(pod: Mapping[str, Any]) -> str | None:
    """Why a pod that has not begun never will, as far as that can be said; None while there is hope."""
    status = pod.get("status", {})
    for each in status.get("containerStatuses") or ():
        waiting = (each.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") in (
            "ErrImagePull",
            "ImagePullBackOff",
            "InvalidImageName",
            "CreateContainerConfigError",
        ):
            return f"{waiting['reason']}: {waiting.get('message', '')}"
    return None


def exit_code(pod: Mapping[str, Any]) -> int | None:
    """How the tool ended, None if it has not or was ended from outside."""
    for each in pod.get("status", {}).get("containerStatuses") or ():
        if ended := (each.get("state") or {}).get("terminated"):
            return int(ended["exitCode"])
    return None
