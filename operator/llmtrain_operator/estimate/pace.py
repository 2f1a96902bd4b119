"""How long training takes and costs, and how often it would save. Pure.

Limit: the share of the peak that is reached is an assumption unless it is given; the time is no better than it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from llmtrain_operator import quantity
from llmtrain_operator.api import JobSpec
from llmtrain_operator.contract.accelerators import Accelerator
from llmtrain_operator.contract.cadence import Measured, Pace, pace, persist_interval
from llmtrain_operator.estimate.compute import USUAL_SHARE, Flops, seconds
from llmtrain_operator.estimate.layout import Layout
from llmtrain_operator.estimate.stores import state_bytes

_TO_HOST: Final = 20e9
"""Bytes per second from an accelerator to its host's memory: three quarters of PCIe 4.0 x16."""
_WITHIN_HOST: Final = 5e9
"""Bytes per second that one core copies within memory."""
_TO_STORAGE: Final = 1e9
"""Bytes per second that a worker writes to storage."""


@dataclass(frozen=True, slots=True)
class Rate:
    """Hardware FLOP/s that one accelerator reaches, what that is of its peak, model FLOPs alone (`mfu`), and where the
    figure comes from."""

    hardware: float
    share: float
    mfu: float
    reason: str


def rate(kind: Accelerator, cost: Flops, mfu: float | None = None, tera_flops: float | None = None) -> Rate:
    """By `mfu` (model FLOPs' share of the peak), or hardware TFLOP/s, or else the usual share."""
    again = cost.hardware / cost.model
    if tera_flops is not None:
        hardware, reason = tera_flops * 1e12, "as given"
    elif mfu is not None:
        hardware, reason = mfu * kind.peak * again, f"MFU {mfu:.1%} as given"
    else:
        hardware, reason = (
            USUAL_SHARE * kind.peak,
            f"assumed: {USUAL_SHARE:.0%} of the peak; --mfu or --tflops say better",
        )
    return Rate(hardware, hardware / kind.peak, hardware / kind.peak / again, reason)


def step_seconds(plan: Layout, cost: Flops, hardware: float) -> float:
    """One optimizer step at `hardware` FLOP/s per accelerator, the unevenness of the batch and the pipeline's bubble
    on top. The rate is taken to have communication in it."""
    tokens = plan.global_batch * plan.length
    return seconds(tokens * cost.hardware, plan.workers, hardware) * plan.padding * plan.bubble


def price(plan: Layout, duration: float, hourly: float) -> float:
    """Of `duration` seconds at `hourly` for each accelerator, in its currency."""
    return plan.workers * duration / 3600 * hourly


def snapshots(spec: JobSpec, plan: Layout, step: float | None, *, on_accelerator: bool) -> tuple[Pace, float]:
    """How often snapshots would be taken, by the trainer's own rule, and how long one would stall training."""
    flash = spec.checkpoint.flash
    share = (state_bytes(spec) or 0) / plan.workers
    stall = share / (_TO_HOST if on_accelerator else _WITHIN_HOST)
    return pace(flash.every_steps, flash.replicate_every, flash.max_overhead, Measured(step=step, stall=stall)), stall


def durable_interval(spec: JobSpec, plan: Layout) -> tuple[float, str] | None:
    """Seconds between checkpoints in storage, by the trainer's own rule, and why; None without storage."""
    durable = spec.checkpoint.durable
    if durable is None:
        return None
    if durable.every != "auto":
        return quantity.seconds(durable.every), "spec.checkpoint.durable.every"
    share = (state_bytes(spec) or 0) / plan.workers
    bandwidth = (quantity.parse(durable.bandwidth) if durable.bandwidth else None) or _TO_STORAGE
    return persist_interval(share / _TO_HOST, share / bandwidth, spec.checkpoint.flash.max_overhead, None)
