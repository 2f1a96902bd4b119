"""What a job could go on from: snapshots in memory, durable checkpoints, and what the newest restore took. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from llmtrain_operator.api import JobStatus
from llmtrain_operator.conditions import seconds
from llmtrain_operator.contract import names
from llmtrain_operator.metrics.series import Labelled, Series, Value, gauge, gauges


def _flash(field: str) -> Value:
    return lambda status, _: getattr(status.flash, field) if status.flash else None


def _checkpoint(field: str) -> Value:
    return lambda status, _: getattr(status.checkpoint, field) if status.checkpoint else None


def _lag(status: JobStatus, _now: float) -> float | None:
    flash = status.flash
    if flash is None or flash.step is None or flash.committed_step is None:
        return None
    return max(0, flash.step - flash.committed_step)


def _age(status: JobStatus, now: float) -> float | None:
    """Of a job that has ended nobody waits for another one."""
    known = status.checkpoint
    if known is None or known.saved_at is None or status.completion_time:
        return None
    return max(0.0, now - seconds(known.saved_at))


def _restore(status: JobStatus) -> Iterator[tuple[str, float]]:
    known = status.checkpoint
    if known and known.restore_seconds is not None and known.restored_tier in names.TIERS:
        yield known.restored_tier, known.restore_seconds


SERIES: Final[tuple[Series, ...]] = (
    gauge("committed_step", "Newest step that members can restore from memory after a loss.", _flash("committed_step")),
    gauge("replica_lag_steps", "Steps that the committed step is behind the newest snapshot.", _lag),
    gauge("snapshot_stall_seconds", "How long training stands still for a snapshot.", _flash("stall_seconds")),
    gauge("snapshot_bytes", "Size of a snapshot over all workers.", _flash("size")),
    gauge("checkpoint_step", "Step of the newest durable checkpoint.", _checkpoint("step")),
    gauge("checkpoint_age_seconds", "Time since the newest durable checkpoint; not of a job that has ended.", _age),
    gauge("checkpoint_stall_seconds", "How long training stood still for it.", _checkpoint("stall_seconds")),
    gauge("checkpoint_save_seconds", "How long it took until it was committed.", _checkpoint("save_seconds")),
    gauge("checkpoint_bytes", "Its size.", _checkpoint("size")),
)

LABELLED: Final[tuple[Labelled, ...]] = (
    gauges(
        "restore_seconds",
        "How long the current round's restore took, by the farthest place that a worker read from.",
        "tier",
        1,
        _restore,
    ),
)
