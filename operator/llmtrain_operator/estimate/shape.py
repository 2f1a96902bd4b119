"""A model's shape and number of parameters, from the spec alone. Pure.

Guarantee: exact for presets, architectures and the Hugging Face model types of `EXACT`, given the vocabulary; an upper
bound for other decoder configs. None for a pretrained model, of which only the members will know, and for a config
without a width or a depth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from llmtrain_operator.api import JobSpec
from llmtrain_operator.contract.presets import PRESETS, Architecture

BYTE_VOCABULARY: Final = 257
LARGE_VOCABULARY: Final = 262_144
"""As many tokens as the largest tokenizers in use have: the members will know better."""
EXACT: Final = ("llama", "mistral", "qwen2", "qwen3", "mixtral", "gpt2")
_TIED: Final = frozenset({"gpt2"})
"""Types whose output layer shares the embedding's weights unless the config says otherwise."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder-only transformer. `parameters`: all trained ones; `layer`: those of one block; `embedding`: those of
    the token embedding (the output layer has as many again unless `tied`); `active`: those that multiply for each
    token, so without look-ups and the experts that sleep. `gated`: whether the feed-forward block has three matrices,
    not two. `exact`: whether the count is, or an upper bound."""

    parameters: int
    active: int
    layer: int
    embedding: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate: int
    vocabulary: int
    tied: bool
    gated: bool = True
    exact: bool = True

    @property
    def kv_share(self) -> float:
        """Width of the keys as a share of the residual stream's."""
        return self.kv_heads * self.head_size / self.hidden


def shape_of(spec: JobSpec, vocabulary: int | None = None) -> Shape | None:
    """The shape of the job's model. `vocabulary`: tokens of its tokenizer, if known better than the spec tells."""
    tokens = vocabulary or (BYTE_VOCABULARY if spec.data and spec.data.tokenizer == "byte" else LARGE_VOCABULARY)
    known = vocabulary is not None or tokens == BYTE_VOCABULARY
    model = spec.model
    if model is None:
        return None
    if model.preset is not None:
        preset = PRESETS.get(model.preset)
        return _llama(preset, tokens, known=known) if preset else None
    if model.architecture is not None:
        given = model.architecture
        heads = given.kv_heads or given.heads
        wide = given.intermediate_size or 4 * given.hidden_size
        own = Architecture(given.hidden_size, given.layers, given.heads, heads, wide, given.tie_embeddings)
        return _llama(own, tokens, known=known)
    length = spec.data.sequence_length if spec.data else 0
    return _of_config(model.config, tokens, length, known=known) if model.config is not None else None


def _llama(own: Architecture, vocabulary: int, *, known: bool) -> Shape:
    hidden, head = own.hidden_size, own.hidden_size // own.heads
    matrices = 2 * hidden * hidden + 2 * hidden * own.kv_heads * head + 3 * hidden * own.intermediate_size
    layer, embedding = matrices + 2 * hidden, vocabulary * hidden
    return Shape(
        parameters=embedding * (1 if own.tie_embeddings else 2) + own.layers * layer + hidden,
        active=own.layers * matrices + embedding,
        layer=layer,
        embedding=embedding,
        hidden=hidden,
        layers=own.layers,
        heads=own.heads,
        kv_heads=own.kv_heads,
        head_size=head,
        intermediate=own.intermediate_size,
        vocabulary=vocabulary,
        tied=own.tie_embeddings,
        exact=known,
    )


def _of_config(config: Mapping[str, Any], vocabulary: int, length: int, *, known: bool) -> Shape | None:
    """Of a Hugging Face config; `length`: positions, unless it says how many."""
    hidden = _first(config, "hidden_size", "n_embd", "d_model")
    layers = _first(config, "num_hidden_layers", "n_layer", "num_layers")
    heads = _first(config, "num_attention_heads", "n_head", "num_heads")
    if not hidden or not layers:
        return None
    kind = str(config.get("model_type"))
    exact = kind in EXACT and heads is not None and (known or "vocab_size" in config)
    heads = heads or 1
    head = _first(config, "head_dim") or max(hidden // heads, 1)
    kv_heads = _first(config, "num_key_value_heads") or heads
    wide = _first(config, "intermediate_size", "n_inner", "ffn_dim") or 4 * hidden
    experts = _first(config, "num_experts", "num_local_experts", "n_routed_experts") or 1
    used = _first(config, "num_experts_per_tok", "num_experts_per_token", "moe_topk") or experts
    gated = kind != "gpt2"
    one = (3 if gated else 2) * hidden * wide
    attention = 2 * hidden * heads * head + 2 * hidden * kv_heads * head
    router = hidden * experts if experts > 1 else 0
    if kind in EXACT:
        layer = attention + router + one * experts + _small(kind, config, hidden, heads * head, kv_heads * head, wide)
    else:
        attention = max(attention, 4 * hidden * hidden)
        layer = attention + router + one * experts + 16 * hidden
    tokens = _first(config, "vocab_size") or vocabulary
    tied = bool(config.get("tie_word_embeddings", kind in _TIED)) if kind in EXACT else False
    positions = 0
    if kind == "gpt2" or kind not in EXACT:
        positions = (_first(config, "max_position_embeddings", "n_positions") or length) * hidden
    embedding = tokens * hidden
    return Shape(
        parameters=embedding * (1 if tied else 2) + positions + layers * layer + hidden * (1 if _rms(kind) else 2),
        active=layers * (attention + router + one * min(used, experts)) + embedding,
        layer=layer,
        embedding=embedding,
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_size=head,
        intermediate=wide,
        vocabulary=tokens,
        tied=tied,
        gated=gated,
        exact=exact,
    )


def _rms(kind: str) -> bool:
    return kind in EXACT and kind != "gpt2"


def _small(kind: str, config: Mapping[str, Any], hidden: int, queries: int, keys: int, wide: int) -> int:
    """Norms and biases of one block."""
    if kind == "gpt2":
        return 4 * hidden + (queries + 2 * keys) + hidden + wide + hidden
    count = 2 * hidden
    if kind == "qwen2":
        count += queries + 2 * keys
    if kind == "qwen3":
        count += 2 * (_first(config, "head_dim") or 128)
    if config.get("attention_bias") is True and kind in ("llama", "qwen3"):
        count += queries + 2 * keys + hidden
    if config.get("mlp_bias") is True and kind == "llama":
        count += 2 * wide + hidden
    return count


def _first(config: Mapping[str, Any], *keys: str) -> int | None:
    found = (config[key] for key in keys if isinstance(config.get(key), int) and not isinstance(config[key], bool))
    return next(found, None)
