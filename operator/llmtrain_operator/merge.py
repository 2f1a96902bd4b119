"""A user's PodTemplate patch over a generated pod, the way Kubernetes itself merges: lists keyed by name, not by place.

Pure. `base` and `patch` are left as they are. A patch of an odd shape gives an odd pod, which the API server refuses in
its own words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

_MERGE_KEYS: Final = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "env": "name",
    "imagePullSecrets": "name",
    "schedulingGates": "name",
    "volumeMounts": "mountPath",
    "ports": "containerPort",
}
_APPENDED: Final = frozenset({"tolerations", "topologySpreadConstraints", "hostAliases"})


def merge(base: Any, patch: Any, field: str = "") -> Any:
    """`patch` over `base`: objects by field, the lists that Kubernetes keys by name by that name, others replaced."""
    if isinstance(base, Mapping) and isinstance(patch, Mapping):
        merged = {key: merge(base.get(key), value, key) if key in base else value for key, value in patch.items()}
        return {**base, **merged}
    if isinstance(base, list) and isinstance(patch, list):
        if field in _APPENDED:
            return base + patch
        if field in _MERGE_KEYS and all(isinstance(item, Mapping) for item in patch):
            return _merge_named(base, patch, _MERGE_KEYS[field])
    return patch


def _merge_named(base: Sequence[Any], patch: Sequence[Any], key: str) -> list[Any]:
    patches = {item.get(key): item for item in patch}
    kept = [merge(item, patches.pop(item[key])) if item.get(key) in patches else item for item in base]
    return kept + list(patches.values())
