"""`template`: patches that would make a member something that the operator cannot run, and misspelt fields.

Pure. What is allowed and merely unwise is left to the user; what the API server refuses by itself is left to it.
"""

# ruff: noqa: SIM905 - lists of words that one can read

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from llmtrain_operator.api.problem import Problem, unknown_key
from llmtrain_operator.contract import names

_PATH: Final = "spec.template"
POD_FIELDS: Final = frozenset(
    "activeDeadlineSeconds affinity automountServiceAccountToken containers dnsConfig dnsPolicy enableServiceLinks "
    "ephemeralContainers evictionResponders hostAliases hostIPC hostNetwork hostPID hostUsers hostname "
    "hostnameOverride imagePullSecrets initContainers nodeName nodeSelector os overhead preemptionPolicy priority "
    "priorityClassName readinessGates resourceClaims resources restartPolicy runtimeClassName schedulerName "
    "schedulingGates schedulingGroup securityContext serviceAccount serviceAccountName setHostnameAsFQDN "
    "shareProcessNamespace subdomain terminationGracePeriodSeconds tolerations topologySpreadConstraints "
    "volumes".split()
)
CONTAINER_FIELDS: Final = frozenset(
    "args command env envFrom image imagePullPolicy lifecycle livenessProbe name ports readinessProbe resizePolicy "
    "resources restartPolicy restartPolicyRules securityContext startupProbe stdin stdinOnce "
    "terminationMessagePath terminationMessagePolicy tty volumeDevices volumeMounts workingDir".split()
)
_OURS_IN_POD: Final = {
    "restartPolicy": "A restarted container would come back into a round that has gone on without it",
    "hostname": "Members find each other by it",
    "hostnameOverride": "Members find each other by their host names",
    "subdomain": "Members find each other by it",
    "setHostnameAsFQDN": "Members find each other by their host names",
    "ephemeralContainers": "They can only be added to a running pod",
}
_OURS_IN_TRAINER: Final = {
    "command": "Use spec.entrypoint for a script of your own",
    "args": "Use spec.entrypoint.args",
    "image": "Use spec.image",
    "restartPolicy": "The operator decides about restarts; see spec.recovery",
}
_OWN_COMMAND: Final = frozenset({"command", "args"})
_OUR_LABELS: Final = frozenset({names.LABEL_NAME, names.LABEL_COMPONENT, names.LABEL_MANAGED_BY})
_OUR_ENVIRONMENT: Final = ("LLMTRAIN_", "PET_")
_OUR_VOLUMES: Final = {
    "tmp": "emptyDir",
    "shm": "emptyDir",
    "cache": "emptyDir",
    "agent": "emptyDir",
    "token": "projected",
}


def check(template: Mapping[str, Any], *, own_script: bool) -> Iterator[Problem]:
    """Everything wrong with `spec.template`. `own_script`: the trainer's command may be replaced, by torchrun."""
    for key, value in template.items():
        if key not in ("metadata", "spec"):
            yield unknown_key(_PATH, key, value, ("metadata", "spec"), "a pod template")
        elif not isinstance(value, Mapping):
            yield Problem(f"{_PATH}.{key}", value, "it is not an object", "Give an object, such as {}")
    yield from _metadata(_object(template, "metadata"))
    yield from _pod(_object(template, "spec"), _OWN_COMMAND if own_script else frozenset())


def _object(parent: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = parent.get(key)
    return value if isinstance(value, Mapping) else {}


def _named(parent: Mapping[str, Any], key: str, path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The (path, item) pairs of a list that is merged by name."""
    value = parent.get(key)
    for index, item in enumerate(value if isinstance(value, list) else ()):
        if isinstance(item, Mapping):
            yield f"{path}.{key}[{index}]", item


def _metadata(metadata: Mapping[str, Any]) -> Iterator[Problem]:
    path = f"{_PATH}.metadata"
    for key, value in metadata.items():
        if key not in ("labels", "annotations"):
            yield Problem(f"{path}.{key}", value, "the operator sets it", "Remove it; labels and annotations are yours")
    for label, value in _object(metadata, "labels").items():
        if label in _OUR_LABELS or label.startswith(f"{names.GROUP}/"):
            yield Problem(f"{path}.labels.{label}", value, "the operator finds members by it", "Use another label")
    for annotation, value in _object(metadata, "annotations").items():
        if annotation.startswith(f"{names.GROUP}/"):
            yield Problem(f"{path}.annotations.{annotation}", value, "the operator sets it", "Use another annotation")


def _pod(pod: Mapping[str, Any], allowed: frozenset[str]) -> Iterator[Problem]:
    path = f"{_PATH}.spec"
    for key, value in pod.items():
        if key not in POD_FIELDS:
            yield unknown_key(path, key, value, POD_FIELDS, "a pod's spec")
        elif key in _OURS_IN_POD and value != ("Never" if key == "restartPolicy" else None):
            yield Problem(f"{path}.{key}", value, f"the operator sets it. {_OURS_IN_POD[key]}", "Remove it")
    for kind in ("containers", "initContainers"):
        yield from _lacking_names(pod, kind, path)
        for where, container in _named(pod, kind, path):
            yield from _container(container, where, allowed, trainer=kind == "containers")
    yield from _volumes(pod, path)


def _lacking_names(pod: Mapping[str, Any], kind: str, path: str) -> Iterator[Problem]:
    value = pod.get(kind, [])
    if not isinstance(value, list) or not all(isinstance(item, Mapping) and item.get("name") for item in value):
        remedy = f"Name each; the member's own is called {names.CONTAINER}" if kind == "containers" else "Name each"
        yield Problem(f"{path}.{kind}", value, "it is not a list of named containers", remedy)


def _container(container: Mapping[str, Any], path: str, allowed: frozenset[str], *, trainer: bool) -> Iterator[Problem]:
    for key, value in container.items():
        if key not in CONTAINER_FIELDS:
            yield unknown_key(path, key, value, CONTAINER_FIELDS, "a container")
        elif trainer and container.get("name") == names.CONTAINER and key in _OURS_IN_TRAINER.keys() - allowed:
            yield Problem(f"{path}.{key}", value, "the operator sets it", _OURS_IN_TRAINER[key])
    for where, variable in _named(container, "env", path):
        name = str(variable.get("name", ""))
        if name.startswith(_OUR_ENVIRONMENT):
            yield Problem(f"{where}.name", name, "the operator and torchrun set it", "Use another name")


def _volumes(pod: Mapping[str, Any], path: str) -> Iterator[Problem]:
    for where, volume in _named(pod, "volumes", path):
        name = volume.get("name")
        source = _OUR_VOLUMES.get(str(name))
        if source and (volume.keys() - {"name", source} or source == "projected"):
            yield Problem(f"{where}.name", name, "the operator has a volume of that name", "Use another name")
