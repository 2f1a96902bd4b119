"""Whether a job can bear a fault now without losing a step. Pure."""

from __future__ import annotations

from typing import Final

from llmtrain_operator import progress
from llmtrain_operator.api import JobSpec, JobStatus
from llmtrain_operator.chaos.faults import Fault

_END: Final = 3.0
"""Seconds before a job's end in which nothing is done to it any more: it may be over before it is struck."""


def why_not_yet(spec: JobSpec, status: JobStatus) -> str | None:
    """What the job has still to do until it is as it was before a fault; None: it trains, whole and protected."""
    current = status.round
    if current is None or status.state != "Running" or current.ending:
        return f"it is {status.state}"
    if len(current.members) != status.target_nodes:
        return f"{len(current.members)} of {status.target_nodes} members train"
    if status.progress is None or status.progress.phase != "training":
        return "its workers do not train"
    if status.incidents and not status.incidents[-1].outcome:
        return "its last incident is not over"
    if _takes_snapshots(spec, status) and not _has_snapshots(status, current.number):
        return "this round's snapshots are not copied yet"
    return None


def _takes_snapshots(spec: JobSpec, status: JobStatus) -> bool:
    if status.flash is None:  # a script of the user's may never speak of them
        return spec.checkpoint.flash.enabled and spec.entrypoint is None
    return not status.flash.trouble


def _has_snapshots(status: JobStatus, number: int) -> bool:
    return status.flash is not None and status.flash.round == number and status.flash.committed_step is not None


def why_not(fault: Fault, spec: JobSpec, status: JobStatus) -> str | None:
    """Why the job would not live through this without losing a step, None if it would."""
    most = spec.recovery.max_restarts
    if fault.spends and status.failures_counted >= most:
        return f"spec.recovery.maxRestarts ({most}) is used up: the next failing worker ends the job"
    flash, saved = status.flash, status.checkpoint and status.checkpoint.step is not None
    in_memory = flash is not None and flash.committed_step is not None
    copied = in_memory and flash is not None and flash.copies > 0
    if fault.takes == "member" and not (copied or saved):
        return "no other member has a copy of what its pod holds, and nothing is in storage"
    if fault.takes == "worker" and not (in_memory or saved):
        return "no step is safe yet, neither in memory nor in storage"
    if fault.name == "corrupt-snapshot" and not copied:
        return "no other member has a copy of the snapshots that would be damaged"
    if fault.name == "fill-memory" and not _is_bounded(spec):
        return (
            "the size of the memory for snapshots is not known, it may be all of the pod's: set checkpoint.flash.memory"
        )
    return None


def _is_bounded(spec: JobSpec) -> bool:
    if spec.checkpoint.flash.memory is not None:
        return True
    return spec.entrypoint is None and spec.model is not None and spec.model.pretrained is None


def why_too_late(status: JobStatus) -> str | None:
    """Why nothing should be done to the job any more."""
    if status.completion_time:
        return f"it is {status.state}"
    left = progress.seconds_left(status)
    return None if left is None or left > _END else f"it ends in {left:.0f} s"
