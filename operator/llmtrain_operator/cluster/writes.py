"""The writes: idempotent, so that a pass which failed half-way is simply run again.

Apply is server-side with one field manager, so what other controllers put on an object stays. Status writes carry the
resource version that was observed, so that two operators, or an operator and its own stale cache, cannot overwrite
each other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from llmtrain_operator.cluster.client import Client, NotFound
from llmtrain_operator.cluster.resources import BY_KIND, JOBS, Resource, controller_of, job_behind, resource_of
from llmtrain_operator.contract import names
from llmtrain_operator.ports import Conflict, Rejected

_MANAGER: Final = {"fieldManager": names.FIELD_MANAGER}


async def apply(client: Client, obj: Mapping[str, Any]) -> dict[str, Any]:
    """Make the fields of `obj` hold, whoever held them before. Returns the object as it is now.

    An owned object is never made of one that is somebody else's: it would go when its new owner goes. One of an earlier
    job of the name is deleted and a `Conflict`, any other is `Rejected`.
    """
    resource, metadata = resource_of(obj), obj["metadata"]
    place = metadata.get("namespace", ""), metadata["name"]
    if controller_of(obj):
        await _check_ours(client, resource, obj)
    return await client.request("apply", resource, *place, query={**_MANAGER, "force": "true"}, body=obj)


async def _check_ours(client: Client, resource: Resource, obj: Mapping[str, Any]) -> None:
    metadata = obj["metadata"]
    try:
        found = await client.request("get", resource, metadata.get("namespace", ""), metadata["name"])
    except NotFound:
        return
    if controller_of(found) == controller_of(obj):
        return
    what = f"{resource.kind} {metadata['name']}"
    if await _clear_away(client, found, obj):
        raise Conflict(f"{what} is an earlier job's and not gone yet")
    raise Rejected(f"{what} exists and is not the job's: rename the job or delete it")


async def _clear_away(client: Client, found: Mapping[str, Any], obj: Mapping[str, Any]) -> bool:
    """Delete `found`, which has the name of `obj`, if it is an earlier job's of the same name; returns whether it is.

    The garbage collector would do it too, but has been seen to take most of a minute. That the earlier job is gone is
    certain: at this moment its name is that of the job that owns `obj`. Otherwise we are the ones who are behind.
    """
    mine, theirs = job_behind(obj), job_behind(found)
    if mine is None or theirs is None or mine["name"] != theirs["name"]:
        return theirs is not None
    namespace, metadata = obj["metadata"]["namespace"], found["metadata"]
    if await uid_now(client, namespace, mine["name"]) == mine["uid"] and "deletionTimestamp" not in metadata:
        await _delete(
            client, resource_of(obj), namespace, metadata["name"], {"preconditions": {"uid": metadata["uid"]}}
        )
    return True


async def uid_now(client: Client, namespace: str, name: str) -> str:
    """The UID of the job of this name as the server knows it at this moment, empty if there is none."""
    try:
        job = await client.request("get", JOBS, namespace, name)
    except NotFound:
        return ""
    return str(job["metadata"]["uid"])


async def create(client: Client, obj: Mapping[str, Any]) -> dict[str, Any]:
    """Create `obj`, or find it created: same name and controlling owner, not being deleted. Else raises `Conflict`."""
    resource, metadata = resource_of(obj), obj["metadata"]
    namespace, name = metadata.get("namespace", ""), metadata["name"]
    try:
        return await client.request("create", resource, namespace, query=_MANAGER, body=obj)
    except Conflict:
        pass
    try:
        found = await client.request("get", resource, namespace, name)
    except NotFound as error:
        raise Conflict(f"{resource.kind} {namespace}/{name} was there a moment ago") from error
    if controller_of(found) != controller_of(obj):
        raise Conflict(
            f"{resource.kind} {namespace}/{name} exists and is not ours: {controller_of(found) or 'no owner'}"
        )
    if "deletionTimestamp" in found["metadata"]:
        raise Conflict(f"{resource.kind} {namespace}/{name} is still being deleted")
    return found


async def delete(
    client: Client, kind: str, namespace: str, name: str, uid: str | None = None, grace: int | None = None
) -> dict[str, Any] | None:
    """Delete the object, with `uid` only that very one. Returns it while it lingers, None once there is none."""
    options: dict[str, Any] = {"propagationPolicy": "Background"}
    if uid is not None:
        options["preconditions"] = {"uid": uid}
    if grace is not None:
        options["gracePeriodSeconds"] = grace
    answer = await _delete(client, BY_KIND[kind], namespace, name, options)
    return answer if answer and answer.get("kind") == kind else None


async def _delete(
    client: Client, resource: Resource, namespace: str, name: str, options: Mapping[str, Any]
) -> dict[str, Any] | None:
    try:
        return await client.request("delete", resource, namespace, name, body=options)
    except (NotFound, Conflict):  # gone, or another object has its name by now
        return None


async def patch_status(client: Client, job: Mapping[str, Any], status: Mapping[str, Any]) -> dict[str, Any] | None:
    """Make `status` the whole status of `job` as observed. None, without a request, if it already is."""
    change = merge_patch(job.get("status") or {}, status)
    if not change:
        return None
    return await _patch_job(client, job, {"status": change}, subresource="status")


async def patch_desired(client: Client, job: Mapping[str, Any], desired: int) -> dict[str, Any]:
    """Set `spec.nodes.desired`."""
    return await _patch_job(client, job, {"spec": {"nodes": {"desired": desired}}})


async def _patch_job(
    client: Client, job: Mapping[str, Any], patch: Mapping[str, Any], subresource: str = ""
) -> dict[str, Any]:
    metadata = job["metadata"]
    namespace, name = metadata["namespace"], metadata["name"]
    guard = {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"]}
    body = {"metadata": guard, **patch}
    try:
        return await client.request("patch", JOBS, namespace, name, subresource=subresource, query=_MANAGER, body=body)
    except NotFound as error:
        raise Conflict(f"{names.KIND} {namespace}/{name} was deleted meanwhile") from error


def merge_patch(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON merge patch (RFC 7396) that turns `old` into `new`. Lists are replaced whole.

    None means absent, and so do NaN and infinity (a diverged loss, say), which JSON cannot express.
    """
    patch: dict[str, Any] = {key: None for key in old if _absent(new.get(key))}
    for key, value in new.items():
        before = old.get(key)
        if isinstance(value, Mapping):
            inner = merge_patch(before if isinstance(before, Mapping) else {}, value)
            if inner or not isinstance(before, Mapping):
                patch[key] = inner
        elif not _absent(value) and value != before:
            patch[key] = value
    return patch


def _absent(value: Any) -> bool:
    return value is None or (isinstance(value, float) and not math.isfinite(value))
