"""Memory of one accelerator and its host while a job trains. Pure.

What DeepSpeed 0.19 keeps for each parameter follows ZeRO (Rajbhandari et al. 2020, arXiv 1910.02054): weights and
gradients in the precision of the computation, masters and moments in fp32. The peak is that of the worst of three
moments: the backward pass begins (all activations), it ends (all gradients), the optimizer works (gradients in fp32,
and intermediate results as large as what it is given at once).
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
_SUB_GROUP: Final = 1_000_000_000
"""Weights that ZeRO 3 updates at once."""
_ADAM: Final = 2


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


def memory(shape: Shape, plan: Layout, bucket: int = BUCKET, *, on_host: bool = False) -> Memory:
    """What a worker needs. `bucket`: DeepSpeed's zero_optimization.reduce_bucket_size. `on_host`: it trains on the CPU,
    where a buffer takes only what is touched of it, and the optimizer goes from tensor to tensor."""
    mine = _stage_parameters(shape, plan)
    weights, gradients = _weights(shape, plan, mine), _gradients(plan, mine)
    optimizer = _optimizer(plan, mine)
    buffers = (min(bucket, mine) if on_host or plan.stage == 0 else bucket) * plan.element
    kept, around = activations.total(shape, plan), activations.loss(shape, plan)
    standing = weights + optimizer + (buffers if plan.stage == 3 else 0.0)
    passing = 0.0 if plan.stage == 3 else buffers
    # With one micro-step nothing of the last step's gradients is left when the next begins.
    left = gradients if plan.micro_steps > 1 or plan.stage == 3 else 0.0
    reserved = passing if plan.stage and not on_host else 0.0
    moments = {
        "the backward pass begins": standing + left + reserved + kept + around,
        "the backward pass ends": standing + gradients + passing + activations.kept(shape, plan),
        "the optimizer works": standing + _update(shape, plan, mine, gradients, on_host=on_host),
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
        host=_host(plan, mine / plan.data),
        loading=_MASTER * shape.parameters,
    )


def states(shape: Shape, plan: Layout) -> float:
    """Bytes of weights, gradients and optimizer state alone, fp32 gradients of the whole update among them: what
    DeepSpeed's own estimators count."""
    mine = _stage_parameters(shape, plan)
    share = mine if plan.stage == 0 else mine / plan.data
    update = 0.0 if plan.offload != "none" or plan.element == _MASTER else _MASTER * share
    return _weights(shape, plan, mine) + _gradients(plan, mine) + _optimizer(plan, mine) + update


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


def _optimizer(plan: Layout, mine: float) -> float:
    """Masters and moments."""
    if plan.offload != "none":
        return 0.0
    share = mine if plan.stage == 0 else mine / plan.data
    masters = 0 if plan.stage == 0 and plan.element == _MASTER else 1
    return (masters + plan.moments) * _MASTER * share


def _update(shape: Shape, plan: Layout, mine: float, gradients: float, *, on_host: bool) -> float:
    """Bytes of gradients, also in fp32, and the optimizer's intermediate results while it works: AdamW's denominators,
    of all it is given at once."""
    if plan.offload != "none":
        return gradients
    share = mine if plan.stage == 0 else mine / plan.data
    if plan.stage == 3:
        share = min(share, _SUB_GROUP)
    # DeepSpeed flattens the gradients of a partition into a copy, and keeps what they were flattened from.
    copy = 0.0 if plan.element == _MASTER and plan.stage == 0 else _MASTER * share
    largest = max(shape.embedding, shape.hidden * shape.intermediate) / plan.tensor
    at_once = min(largest, share) if on_host and plan.stage == 0 else share
    return gradients + copy + _MASTER * at_once * (2 if on_host and plan.moments == _ADAM else 1)


def _host(plan: Layout, share: float) -> float:
    if plan.offload == "none":
        return 0.0
    state = share * _MASTER * (2 + plan.moments)  # masters, their gradients, moments
    staging = share * plan.element
    return state + staging
