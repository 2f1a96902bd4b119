"""Floating-point operations of training, and how long they take. Pure.

A token costs 2 FLOPs per active parameter forward and 4 backward (6ND: Kaplan et al. 2020, arXiv 2001.08361; Hoffmann
et al. 2022, arXiv 2203.15556), and 2 more where the whole forward pass is computed again (8ND). Attention over a
sequence adds 12 * layers * width * length (PaLM: Chowdhery et al. 2022, arXiv 2204.02311, appendix B), a third of which
is forward. Model FLOPs leave recomputation out, hardware FLOPs have it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from llmtrain_operator.contract.accelerators import Accelerator
from llmtrain_operator.estimate.shape import Shape

Recompute = Literal["none", "selective", "full"]
OPTIMAL_TOKENS: Final = 20
"""Training tokens per parameter for the least loss at given compute (Hoffmann et al. 2022)."""
USUAL_SHARE: Final = 0.4
"""Part of the peak that large models are usually seen to reach, where nothing better is known."""
DAY: Final = 86_400.0


@dataclass(frozen=True, slots=True)
class Flops:
    """FLOPs for one token: `model` by definition, `hardware` with what is computed again, `attention` of the model's
    are over the sequence."""

    model: float
    hardware: float
    attention: float


def per_token(shape: Shape, length: int, recompute: Recompute = "none") -> Flops:
    """FLOPs for one token in sequences of `length`."""
    attention = 12.0 * shape.layers * shape.heads * shape.head_size * length
    model = 6.0 * shape.active + attention
    again = {"none": 0.0, "selective": attention / 3, "full": model / 3}[recompute]
    return Flops(model, model + again, attention)


def training_flops(parameters: float, tokens: float, recompute: Recompute = "none") -> float:
    """The rule of thumb without attention: 6ND, or 8ND with full recomputation."""
    return (8.0 if recompute == "full" else 6.0) * parameters * tokens


def seconds(flops: float, accelerators: int, rate: float) -> float:
    """For so many hardware FLOPs at `rate` FLOP/s on each accelerator."""
    return flops / (accelerators * rate)


def misconfigured(kind: Accelerator, rate: float) -> str:
    """Why this rate, in FLOP/s per accelerator, is too low to be right; empty if it is not, or nobody knows."""
    if kind.expected is None or rate >= kind.expected:
        return ""
    return (
        f"{rate / 1e12:.0f} TFLOP/s on an {kind.name}: below {kind.expected / 1e12:.0f} the software or the network is "
        "probably misconfigured (or the model is too small to keep it busy)"
    )
