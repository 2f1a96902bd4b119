"""A member's pod object -> the command and environment of a process. Pure.

What only a container could have (images, mounts, limits, init containers) has no effect here. An environment variable
that a cluster would take from a secret or config map is taken from the caller's environment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from llmtrain_operator.contract import names
from llmtrain_operator.manifests import agent_command
from llmtrain_operator.ports import Rejected

ADDRESS: Final = "127.0.0.1"
_OWN_COMMANDS: Final = (agent_command(foreign=False), agent_command(foreign=True))


@dataclass(frozen=True, slots=True)
class Recipe:
    """What to start. `grace`: seconds between SIGTERM and SIGKILL."""

    command: tuple[str, ...]
    environment: Mapping[str, str]
    directory: str | None
    grace: float
    claims: tuple[str, ...]


def recipe(pod: Mapping[str, Any], outer: Mapping[str, str], own: Mapping[str, str], python: str) -> Recipe:
    """`outer`: the caller's environment; `own`: what holds whatever the pod says. Raises `Rejected`."""
    spec = pod["spec"]
    container = next(each for each in spec["containers"] if each.get("name") == names.CONTAINER)
    fields = _fields(pod)
    environment = dict(outer)
    for item in container.get("env") or ():
        if item["name"] != "HOME":  # the pod's is a container's; here it is the user's, whose caches are there
            environment[item["name"]] = _value(item, fields, outer)
    command = container.get("command") or []
    if tuple(command) in _OWN_COMMANDS:
        command = [python, "-u", "-m", "llmtrain_trainer.agent"]
    claims = (volume.get("persistentVolumeClaim") for volume in spec.get("volumes") or ())
    return Recipe(
        command=(*command, *(container.get("args") or ())),
        environment=environment | dict(own),
        directory=container.get("workingDir"),
        grace=float(spec.get("terminationGracePeriodSeconds") or 0),
        claims=tuple(claim["claimName"] for claim in claims if claim),
    )


def accelerators(node: int, procs: int, nodes: int, available: tuple[str, ...]) -> str:
    """CUDA_VISIBLE_DEVICES of the node of this number (from 0): a share of its own, or none if they do not go round."""
    if len(available) < nodes * procs:
        return ""
    return ",".join(available[node * procs : (node + 1) * procs])


def _fields(pod: Mapping[str, Any]) -> dict[str, str]:
    metadata = pod["metadata"]
    plain = {f"metadata.{key}": metadata[key] for key in ("name", "namespace", "uid")}
    labels = {f"metadata.labels['{key}']": value for key, value in metadata.get("labels", {}).items()}
    return plain | labels | {"status.podIP": ADDRESS, "status.hostIP": ADDRESS}


def _value(item: Mapping[str, Any], fields: Mapping[str, str], outer: Mapping[str, str]) -> str:
    source = item.get("valueFrom")
    if not source:
        return str(item.get("value") or "")
    path = (source.get("fieldRef") or {}).get("fieldPath", "")
    if path in fields:
        return fields[path]
    if item["name"] in outer:
        return outer[item["name"]]
    raise Rejected(
        f"the environment variable {item['name']} comes from {', '.join(source)}, which is not there without a "
        f"cluster: set {item['name']} in the environment of `llmtrain local`"
    )
