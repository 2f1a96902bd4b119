"""Memory of one accelerator and its host while a job trains. Pure.

What DeepSpeed 0.19 keeps for each parameter follows ZeRO (Rajbhandari et al. 2020, arXiv 1910.02054): weights and
gradients in the precision of the computation, masters and moments in fp32. The peak is that of the worst of three
moments: the backward pass begins (all activations), it ends (all gradients), the optimizer works (fp32 gradients).
Guarantee: an upper bound of what the allocator hands out at once, within 10 % of what was measured on CPUs
(tests/e2e/test_estimate_measured.py). Limits: no allocator's fragmentation, no libraries' own memory (a CUDA context
and NCCL take 1 to 2 GB), no layer types but dense decoder blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from llmtrain_operator.api import JobSpec
from llmtrain_operator.estimate import activations
from llmtrain_operator.estimate.layout import Layout
from llmtrain_operator.estimate.shape import Shape

_MASTER: Final = 4
BUCKET: Final = 500_000_000
"""Numbers in DeepSpeed's reduce bucket unless its configuration says otherwise."""
_LIVE: Final = 1_000_000_000
"""Gathered weights that ZeRO 3 lets live at once."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on the fullest accelerator. `peak` is the sum of what is there at `moment`, the worst one; `host` is what
    offloading puts into the host's memory for this worker, and `loading` what each worker takes there while it builds
    the model."""

    weights: float
    gradients: float
    optimizer: float
    buffers: float
    activations: float
    loss: float
    peak: float
    moment: str
    host: float
    loading: float


def reduce_bucket(spec: JobSpec) -> int:
    """Numbers in DeepSpeed's reduce bucket."""
    zero = spec.deepspeed.config.get("zero_optimization")
    given = zero.get("reduce_bucket_size") if isinstance(zero, Mapping) else None
    return int(given) if isinstance(given, int | float) else BUCKET


def memory(shape: Shape, plan: Layout, bucket: int = BUCKET, *, paged: bool = False) -> Memory:
    """What a worker needs. `bucket`: DeepSpeed's zero_optimization.reduce_bucket_size. `paged`: host memory in place of
    an accelerator's, of which a buffer takes only what is touched."""
    mine = _stage_parameters(shape, plan)
    share = mine / plan.data
    weights, gradients = _weights(shape, plan, mine), _gradients(plan, mine)
    optimizer, step = _optimizer(plan, mine)
    buffers = _buffers(plan, min(bucket, mine) if paged else bucket)
    kept, around = activations.total(shape, plan), activations.loss(shape, plan)
    standing = weights + optimizer
    # With one micro-step nothing of the last step's gradients is left when the next begins.
    left = gradients if plan.micro_steps > 1 or plan.stage == 3 else 0.0
    moments = {
        "the backward pass begins": standing + left + buffers + kept + around,
        "the backward pass ends": standing + gradients + buffers + activations.kept(shape, plan),
        "the optimizer works": standing + gradients + step,
    }
    worst = max(moments, key=lambda name: moments[name])
    return Memory(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        buffers=buffers,
        activations=kept,
        loss=around,
        peak=moments[worst],
        moment=worst,
        host=_host(plan, share),
        loading=_MASTER * shape.parameters,
    )


def states(shape: Shape, plan: Layout) -> float:
    """Bytes of weights, gradients and optimizer state alone, fp32 gradients of the update among them: what DeepSpeed's
    own estimators count."""
    mine = _stage_parameters(shape, plan)
    optimizer, step = _optimizer(plan, mine)
    return _weights(shape, plan, mine) + _gradients(plan, mine) + optimizer + step


def _stage_parameters(shape: Shape, plan: Layout) -> float:
    """Parameters of the first pipeline stage, which has the embedding, on one of its tensor-parallel ranks."""
    if plan.pipeline == 1:
        return shape.parameters / plan.tensor
    return (-(-shape.layers // plan.pipeline) * shape.layer + shape.embedding) / plan.tensor


def _weights(shape: Shape, plan: Layout, mine: float) -> float:
    if plan.stage < 3:
        return mine * plan.element
    kept = 0.0 if plan.offload == "parameters" else mine / plan.data * plan.element
    largest = max(shape.layer, shape.embedding) / plan.tensor
    gathered = largest if plan.data > 1 else 0.0
    return kept + 2 * min(gathered, _LIVE) * plan.element


def _gradients(plan: Layout, mine: float) -> float:
    whole = mine * plan.element
    if plan.offload != "none" and plan.stage >= 2:
        return 0.0
    return whole if plan.stage < 2 else whole / plan.data


def _optimizer(plan: Layout, mine: float) -> tuple[float, float]:
    """Bytes that stay, and those that the update adds: gradients in fp32."""
    share = mine if plan.stage == 0 else mine / plan.data
    moments = plan.moments * _MASTER * share
    if plan.offload != "none":
        return 0.0, 0.0
    if plan.stage == 0 and plan.element == _MASTER:
        return moments, 0.0
    return moments + _MASTER * share, _MASTER * share


def _buffers(plan: Layout, bucket: float) -> float:
    """Reduce buckets; a second one overlaps communication in ZeRO 3."""
    return 0.0 if plan.stage == 0 else bucket * plan.element


def _host(plan: Layout, share: float) -> float:
    if plan.offload == "none":
        return 0.0
    state = share * _MASTER * (2 + plan.moments)  # masters, their gradients, moments
    staging = share * plan.element
    return state + staging
