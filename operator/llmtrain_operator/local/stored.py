"""The job object of a run, as an API server would hold it: new, carried on by the next run, left behind.

Pure. `now` is in seconds since 1970.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic import ValidationError

from llmtrain_operator.api import JobStatus
from llmtrain_operator.conditions import ConditionType, put, timestamp
from llmtrain_operator.contract import names

_LEFT: Final = "`llmtrain local` is not running; run it again to go on from the newest checkpoint"


def as_stored(given: Mapping[str, Any], uid: str, now: float) -> dict[str, Any]:
    """The job right after it was applied for the first time."""
    metadata = {
        "namespace": "default",
        **given["metadata"],
        "uid": uid,
        "generation": 1,
        "resourceVersion": "1",
        "creationTimestamp": timestamp(now)[:19] + "Z",
    }
    return {**{key: value for key, value in given.items() if key != "status"}, "metadata": metadata}


def carried_on(previous: Mapping[str, Any] | None, given: Mapping[str, Any], uid: str, now: float) -> dict[str, Any]:
    """The job that a run begins with: the one that the run before left unfinished, with its spec as it is given now;
    else a new one."""
    fresh = as_stored(given, uid, now)
    status = _status(previous)
    if previous is None or status is None or status.observed_generation is None or status.completion_time:
        return fresh
    old = previous["metadata"]
    metadata = fresh["metadata"] | {key: old[key] for key in ("uid", "creationTimestamp")}
    metadata |= {"generation": old["generation"] + 1, "resourceVersion": str(int(old["resourceVersion"]) + 1)}
    return {**fresh, "metadata": metadata, "status": as_left(previous, now)["status"]}


def as_left(job: Mapping[str, Any], now: float) -> dict[str, Any]:
    """The job as nobody trains it any more, whatever the process that did so wrote last."""
    status = JobStatus.model_validate(job.get("status") or {})
    if status.completion_time or status.state == "Suspended":
        return dict(job)
    told: tuple[tuple[ConditionType, bool], ...] = (("Running", False), ("Recovering", False), ("Suspended", True))
    conditions = status.conditions
    for kind, value in told:
        generation = job["metadata"]["generation"]
        conditions = put(conditions, kind, value, "RunEnded", _LEFT, generation=generation, now=now)
    step = status.progress.step if status.progress else 0
    left = status.model_copy(
        update={
            "state": "Suspended",
            "conditions": conditions,
            "round": None,
            "progress": None,
            "best_step": max(status.best_step, step),
            "nodes": "0",
            "replicas": 0,
            "waiting_since": None,
            "not_before": None,
        }
    )
    return {**job, "status": left.model_dump(mode="json", by_alias=True, exclude_none=True)}


def hold(job: Mapping[str, Any]) -> dict[str, Any]:
    """The merge patch that suspends a job although what it has trained may be saved nowhere: its user ends the run."""
    spec = job["spec"]
    saves = (spec.get("checkpoint") or {}).get("durable") and not spec.get("entrypoint")
    leave = {} if saves else {"metadata": {"annotations": {names.ANNOTATION_DISCARD_PROGRESS: "true"}}}
    return {**leave, "spec": {"suspend": True}}


def merge_patch(target: Any, patch: Any) -> Any:
    """RFC 7396: `patch` merged into `target`; null removes."""
    if not isinstance(patch, Mapping):
        return patch
    result = dict(target) if isinstance(target, Mapping) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge_patch(result.get(key), value)
    return result


def _status(job: Mapping[str, Any] | None) -> JobStatus | None:
    """What was written last, None if this version cannot read it."""
    try:
        return JobStatus.model_validate((job or {}).get("status") or {})
    except ValidationError:
        return None
