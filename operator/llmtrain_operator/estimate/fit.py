"""Whether a job's workers find room, as far as can be said before they try. Pure.

Guarantee: that it does not fit is said only where even the least that the model may take exceeds what there is by more
than the estimate's own error. Limit: what a pod may use is known from its template's limit or its accelerators alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from llmtrain_operator import quantity
from llmtrain_operator.api import JobSpec
from llmtrain_operator.estimate.figures import memory_size
from llmtrain_operator.estimate.layout import Layout, Wanted, layout
from llmtrain_operator.estimate.memory import Memory, memory, reduce_bucket
from llmtrain_operator.estimate.prior import accelerator_of, resource
from llmtrain_operator.estimate.shape import Shape, shape_of
from llmtrain_operator.estimate.stores import moments

ERROR: Final = 0.1
"""By which share an estimate may be wrong."""
PROCESS: Final = 400 * 2**20
"""Bytes of a pod's processes before there is a model: the interpreter and its libraries."""
_LEAST_VOCABULARY: Final = 1000


@dataclass(frozen=True, slots=True)
class Fit:
    """One comparison: `needed` and `there` in bytes; `reason` and `message` as in a condition. `value`: whether it
    fits."""

    value: bool
    reason: str
    message: str
    needed: float
    there: float


def fits(spec: JobSpec, members: int, accelerator_memory: int | None = None) -> Fit | None:
    """The worst of what can be compared for a round of so many members; None if nothing can.

    `accelerator_memory`: bytes of the smallest accelerator that the job's nodes are known to have.
    """
    case = _case(spec, members)
    if case is None:
        return None
    shape, plan = case
    judged = list(_judged(spec, shape, plan, accelerator_memory))
    return max(judged, key=lambda fit: fit.needed / fit.there, default=None)


def limit_of(spec: JobSpec) -> int | None:
    """Bytes of memory that the template lets the trainer's container use; None if it sets no limit."""
    return quantity.parse(resource(spec, "limits", "memory"))


def _case(spec: JobSpec, members: int) -> tuple[Shape, Layout] | None:
    if spec.entrypoint:
        return None
    shape = shape_of(spec)
    if shape is not None and not shape.exact:
        shape = shape_of(spec, _LEAST_VOCABULARY)
    if shape is None or not shape.exact:
        return None
    plan = layout(spec, shape, Wanted(nodes=members), moments(spec))
    return (shape, plan) if isinstance(plan, Layout) else None


def _judged(spec: JobSpec, shape: Shape, plan: Layout, accelerator_memory: int | None) -> Iterator[Fit]:
    on_accelerator = spec.nodes.accelerator_resource is not None
    needs = memory(shape, plan, reduce_bucket(spec), on_host=not on_accelerator)
    kind = accelerator_of(spec)
    there = accelerator_memory or (kind.memory if kind else None)
    if on_accelerator and there:
        name = kind.name if kind else "accelerator"
        what = f"each worker needs about {memory_size(needs.peak)} of its {name}'s {memory_size(there)}"
        yield _compared("Accelerator", what, needs.peak, there, remedy(plan))
    if limit := limit_of(spec):
        host = pod_memory(needs, plan, on_accelerator=on_accelerator)
        what = f"each pod needs about {memory_size(host)} of memory and its template limits it to {memory_size(limit)}"
        ways = "raise limits.memory in spec.template" + ("" if on_accelerator else f"; or {remedy(plan)}")
        yield _compared("MemoryLimit", what, host, limit, ways)


def pod_memory(needs: Memory, plan: Layout, *, on_accelerator: bool) -> float:
    """Bytes of host memory of one pod, without its snapshots, whose memory is added to request and limit."""
    each = max(needs.host, needs.loading) if on_accelerator else needs.peak + needs.host
    return PROCESS + plan.per_node * each


def _compared(what: str, words: str, needed: float, there: float, ways: str) -> Fit:
    ratio = needed / there
    if ratio > 1 + ERROR:
        return Fit(False, f"{what}TooSmall", f"{words}: {ways}", needed, there)
    if ratio > 1 - ERROR:
        return Fit(True, f"{what}Tight", f"{words}, which may or may not do: {ways}", needed, there)
    return Fit(True, "Fits", words, needed, there)


def remedy(plan: Layout) -> str:
    """What makes a job take less of a worker's memory, the cheapest first."""
    ways = []
    if plan.micro_batch > 1:
        ways.append("a smaller training.microBatchSize")
    if plan.recompute != "full":
        ways.append("training.activationCheckpointing")
    if plan.stage < 3 and plan.data > 1:
        ways.append(f"deepspeed.stage {plan.stage + 1}")
    if plan.offload == "none" and plan.stage:
        ways.append("deepspeed.offloadOptimizer: cpu")
    return f"try {', '.join([*ways, 'more members' if plan.stage else 'a larger accelerator'])}"
