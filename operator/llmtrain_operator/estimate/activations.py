"""Memory of activations: what the forward pass keeps for the backward pass. Pure.

`published` is the formula of Korthikanti et al. 2022 (Reducing Activation Recomputation in Large Transformer Models,
arXiv 2205.05198, sections 4 and 5) for a GPT block with a 4x feed-forward layer, dropout and 16-bit activations.
`kept` counts the tensors that this project's trainer keeps: the Llama block of transformers (RMSNorm, rotary positions,
gated feed-forward, no dropout) with fused attention, which never has the matrix of length x length.
"""

from __future__ import annotations

from llmtrain_operator.estimate.compute import Recompute
from llmtrain_operator.estimate.layout import Layout
from llmtrain_operator.estimate.shape import Shape


def published(
    hidden: int, heads: int, length: int, batch: int, tensor: int, recompute: Recompute, *, sequence_parallel: bool
) -> float:
    """Bytes of one layer for one micro-batch on each of `tensor` tensor-parallel accelerators (table 2)."""
    unit, square = float(length * batch * hidden), 5.0 * heads * length / hidden
    if recompute == "full":
        return 2.0 * unit
    core = 0.0 if recompute == "selective" else square / tensor
    if sequence_parallel:
        return unit * (34.0 / tensor + core)
    return unit * (10.0 + 24.0 / tensor + core)


def kept(shape: Shape, plan: Layout) -> float:
    """Bytes of one layer for one micro-batch on one accelerator, without recomputation."""
    tokens, element = plan.micro_batch * plan.length, plan.element
    width = shape.heads * shape.head_size
    # Queries, keys and values as the fused kernel takes them, its output, its log-sum-exp in fp32.
    attention = element * (2 * width + 2 * shape.kv_heads * shape.head_size) + 4 * shape.heads
    wide = element * shape.intermediate * (4 if shape.gated else 2)
    return 2 * norm(shape, plan) + tokens * (attention + wide) / plan.tensor


def norm(shape: Shape, plan: Layout) -> float:
    """Bytes of one norm: its fp32 input, its normalised values, and what it puts out, which feeds the matrices."""
    return float(plan.micro_batch * plan.length * shape.hidden * (4 + 2 * plan.element))


def boundary(shape: Shape, plan: Layout) -> float:
    """Bytes of a layer's input alone: all that full recomputation keeps of it."""
    return float(plan.micro_batch * plan.length * shape.hidden * plan.element)


def layers_held(shape: Shape, plan: Layout) -> int:
    """Layers' worth of one micro-batch that the first pipeline stage, the fullest, holds at once: it has as many
    micro-batches in flight as there are stages (1F1B), if there are so many."""
    own = -(-shape.layers // plan.pipeline)
    return own * min(plan.pipeline, plan.micro_steps)


def total(shape: Shape, plan: Layout) -> float:
    """Bytes on the fullest accelerator when the backward pass begins. Recomputed layers are made one at a time."""
    held = layers_held(shape, plan)
    whole = kept(shape, plan)
    last = norm(shape, plan)
    if plan.recompute == "full":
        return held * boundary(shape, plan) + whole + last
    # Fused attention already leaves out what selective recomputation would save.
    return held * whole + last


def loss(shape: Shape, plan: Layout) -> float:
    """Bytes around the loss when the backward pass begins: log-softmax of the logits in fp32, and two gradients of it.
    The logits themselves are not kept."""
    return 12.0 * plan.micro_batch * plan.length * shape.vocabulary / plan.tensor


def kv_cache(shape: Shape, length: int, batch: int = 1, element: int = 2) -> int:
    """Bytes of keys and values for generating with a context of `length`."""
    return 2 * shape.layers * shape.kv_heads * shape.head_size * length * batch * element
