"""How large a model's training state is, from the spec alone. Pure.

Exact for presets and architectures; an upper bound for a Hugging Face config of the usual kinds; None for a pretrained
model, of which only the members will know.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from llmtrain_operator.api import JobSpec
from llmtrain_operator.contract.presets import PRESETS, Architecture

_BYTE_VOCABULARY: Final = 257
_LARGE_VOCABULARY: Final = 262_144
"""As many tokens as the largest tokenizers in use have: the members will know better."""
_WEIGHT: Final = 4  # the optimizer's weights, and each of its moments, are fp32
SLOTS: Final = 3
"""Snapshots that a worker keeps, and a buddy for it; one more where they are also persisted."""
_MIB: Final = 2**20
_MARGIN: Final = 64 * _MIB
"""For heads and checksums."""


def parameters(spec: JobSpec) -> int | None:
    """Trained parameters of the model, at most."""
    vocabulary = _BYTE_VOCABULARY if spec.data and spec.data.tokenizer == "byte" else _LARGE_VOCABULARY
    model = spec.model
    if model is None:
        return None
    if model.preset is not None:
        shape = PRESETS.get(model.preset)
        return _transformer(shape, vocabulary) if shape else None
    if model.architecture is not None:
        given = model.architecture
        heads = given.kv_heads or given.heads
        wide = given.intermediate_size or 4 * given.hidden_size
        shape = Architecture(given.hidden_size, given.layers, given.heads, heads, wide, given.tie_embeddings)
        return _transformer(shape, vocabulary)
    return _of_config(model.config, vocabulary) if model.config is not None else None


def state_bytes(spec: JobSpec) -> int | None:
    """Bytes of weights and optimizer state over all workers."""
    count = parameters(spec)
    if count is None or spec.training is None:
        return None
    optimizer = spec.training.optimizer
    moments = 2 if optimizer.type == "AdamW" else 1 if optimizer.momentum else 0
    return count * _WEIGHT * (1 + moments)


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


def _transformer(shape: Architecture, vocabulary: int) -> int:
    hidden, head = shape.hidden_size, shape.hidden_size // shape.heads
    attention = 2 * hidden * hidden + 2 * hidden * shape.kv_heads * head
    layer = attention + 3 * hidden * shape.intermediate_size + 2 * hidden
    embeddings = vocabulary * hidden * (1 if shape.tie_embeddings else 2)
    return embeddings + shape.layers * layer + hidden


def _of_config(config: Mapping[str, Any], vocabulary: int) -> int | None:
    hidden = _first(config, "hidden_size", "n_embd", "d_model")
    layers = _first(config, "num_hidden_layers", "n_layer", "num_layers")
    if hidden is None or layers is None:
        return None
    wide = _first(config, "intermediate_size", "n_inner", "ffn_dim") or 4 * hidden
    experts = _first(config, "num_experts", "num_local_experts", "n_routed_experts") or 1
    tokens = max(_first(config, "vocab_size") or 0, vocabulary if "vocab_size" not in config else 0)
    positions = _first(config, "max_position_embeddings", "n_positions") or 0
    layer = 4 * hidden * hidden + 3 * hidden * wide * experts + 16 * hidden
    return 2 * tokens * hidden + positions * hidden + layers * layer + 2 * hidden


def _first(config: Mapping[str, Any], *keys: str) -> int | None:
    found = (config[key] for key in keys if isinstance(config.get(key), int))
    return next(found, None)
