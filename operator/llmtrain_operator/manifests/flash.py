"""Room for a member's snapshots: a volume in memory, and the memory itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmtrain_operator import estimate, quantity
from llmtrain_operator.api import JobSpec
from llmtrain_operator.contract import names


def volumes(spec: JobSpec) -> list[dict[str, Any]]:
    """The one for snapshots, if there are any."""
    if not spec.checkpoint.flash.enabled:
        return []
    size = _bytes(spec)
    limit = {"sizeLimit": quantity.show(size)} if size else {}
    return [{"name": "flash", "emptyDir": {"medium": "Memory", **limit}}]


def with_room(pod: dict[str, Any], spec: JobSpec) -> None:
    """What snapshots take is memory of the container, beside what the user has asked for: request it, and let the limit
    have room for it. A template of an odd shape is left to the API server."""
    size = _bytes(spec)
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


def _bytes(spec: JobSpec) -> int | None:
    """Bytes for snapshots in each pod, None if there are none or nobody knows."""
    flash = spec.checkpoint.flash
    if not flash.enabled:
        return None
    if flash.memory is not None:
        return quantity.parse(flash.memory)
    return None if spec.entrypoint else estimate.flash_bytes(spec)
