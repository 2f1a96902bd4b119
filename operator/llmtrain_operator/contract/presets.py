"""Model presets: decoder-only transformers of the Llama family, by name.

`gpt-tiny` trains on a laptop's CPU; the others follow published sizes. The vocabulary comes from the tokenizer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Architecture:
    """Shape of a decoder-only transformer (RMSNorm, rotary positions, SwiGLU, grouped-query attention)."""

    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    intermediate_size: int
    tie_embeddings: bool = True
    rope_theta: float = 10_000.0
    norm_epsilon: float = 1e-5


PRESETS: Final[dict[str, Architecture]] = {
    "gpt-tiny": Architecture(hidden_size=128, layers=4, heads=4, kv_heads=4, intermediate_size=352),
    "gpt-mini": Architecture(hidden_size=384, layers=6, heads=6, kv_heads=6, intermediate_size=1024),
    "gpt-small": Architecture(hidden_size=768, layers=12, heads=12, kv_heads=12, intermediate_size=2048),
    "gpt-medium": Architecture(hidden_size=1024, layers=24, heads=16, kv_heads=16, intermediate_size=2816),
    "llama-1b": Architecture(
        hidden_size=2048, layers=16, heads=32, kv_heads=8, intermediate_size=8192, rope_theta=500_000.0
    ),
    "llama-8b": Architecture(
        hidden_size=4096,
        layers=32,
        heads=32,
        kv_heads=8,
        intermediate_size=14336,
        tie_embeddings=False,
        rope_theta=500_000.0,
    ),
    "llama-70b": Architecture(
        hidden_size=8192,
        layers=80,
        heads=64,
        kv_heads=8,
        intermediate_size=28672,
        tie_embeddings=False,
        rope_theta=500_000.0,
    ),
}
