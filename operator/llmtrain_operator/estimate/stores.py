"""How much memory and storage the training state takes: snapshots, copies, checkpoints. Pure."""

from __future__ import annotations

from typing import Final

from llmtrain_operator.api import JobSpec
from llmtrain_operator.estimate.shape import shape_of

_WEIGHT: Final = 4  # the optimizer's weights, and each of its moments, are fp32
SLOTS: Final = 3
"""Snapshots that a worker keeps, and a buddy for it; one more where they are also persisted."""
_MIB: Final = 2**20
_MARGIN: Final = 64 * _MIB
"""For heads and checksums."""


def parameters(spec: JobSpec, vocabulary: int | None = None) -> int | None:
    """Trained parameters of the model, at most."""
    shape = shape_of(spec, vocabulary)
    return shape.parameters if shape else None


def moments(spec: JobSpec) -> int:
    """Numbers that the optimizer keeps beside each weight."""
    optimizer = spec.training.optimizer
    return 2 if optimizer.type == "AdamW" else 1 if optimizer.momentum else 0


def state_bytes(spec: JobSpec, vocabulary: int | None = None) -> int | None:
    """Bytes of weights and optimizer state over all workers: also the size of a durable checkpoint."""
    count = parameters(spec, vocabulary)
    return None if count is None else count * _WEIGHT * (1 + moments(spec))


def flash_bytes(spec: JobSpec) -> int | None:
    """Memory for snapshots in each pod: for the size of round that needs most of it."""
    state = state_bytes(spec)
    flash = spec.checkpoint.flash
    if state is None:
        return None
    slots = SLOTS + (1 if spec.checkpoint.durable else 0)
    sizes = range(spec.nodes.min, spec.nodes.maximum + 1)
    most = max(-(-state // members) * (slots + SLOTS * min(flash.replicas, members - 1)) for members in sizes)
    return -(-(most + most // 50 + _MARGIN) // _MIB) * _MIB
