"""`scheduling` and `template` speak of the same things: what one says must not be unsaid by the other. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from llmtrain_operator.api.problem import Problem
from llmtrain_operator.api.scheduling import Scheduling

_SAME: Final = {"schedulerName": "scheduler_name", "priorityClassName": "priority_class_name"}
_GROUPED_BY: Final = {
    "labels": ("kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/pod-group-name", "scheduling.x-k8s.io/pod-group"),
    "annotations": ("kueue.x-k8s.io/pod-group-total-count", "scheduling.k8s.io/group-name"),
}


def check(scheduling: Scheduling | None, template: Mapping[str, Any]) -> Iterator[Problem]:
    """Contradictions between the two, reported at the template."""
    wanted = scheduling or Scheduling()
    pod = _object(template, "spec")
    for key, field in _SAME.items():
        here, there = pod.get(key), getattr(wanted, field)
        if there is not None and here not in (None, there):
            message = f"spec.scheduling.{key} says {there}"
            yield Problem(f"spec.template.spec.{key}", here, message, "Remove one of them")
    if wanted.gang == "native" and "schedulingGroup" in pod:
        message = "the operator sets it for gang native"
        yield Problem("spec.template.spec.schedulingGroup", pod["schedulingGroup"], message, "Remove one of them")
    if wanted.gang == "none" and wanted.queue is None:
        return
    metadata = _object(template, "metadata")
    for kind, keys in _GROUPED_BY.items():
        given = _object(metadata, kind)
        for key in keys:
            if key in given:
                message = "the operator sets it for spec.scheduling.queue and gang"
                yield Problem(f"spec.template.metadata.{kind}.{key}", given[key], message, "Remove it")


def _object(parent: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = parent.get(key)
    return value if isinstance(value, Mapping) else {}
