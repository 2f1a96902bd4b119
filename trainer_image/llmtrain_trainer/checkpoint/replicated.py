"""ZeRO stage 0: every rank holds everything. Each saves an even part of it and loads all of it."""

from __future__ import annotations

from typing import Any

import torch

from llmtrain_trainer.checkpoint import flats
from llmtrain_trainer.checkpoint.flats import Flat, Range


class Replicated:
    """One flat per parameter: the model's own weight, or with bf16 and fp16 the wrapper's fp32 copy of it."""

    def __init__(self, engine: Any, names: dict[int, str], rank: int, world_size: int) -> None:
        self._optimizer = engine.optimizer
        self._rank, self._world_size = rank, world_size
        self._half = hasattr(self._optimizer, "fp32_groups")  # the wrapper for bf16 and fp16
        inner = self._optimizer.optimizer if self._half else self._optimizer
        self._held = [
            Flat(master, inner, (names[id(weight)],), (Range(names[id(weight)], 0, master.numel(), 0),))
            for weight, master in self._pairs()
        ]

    def held(self) -> list[Flat]:
        """What this rank has to fill."""
        return self._held

    def owned(self) -> list[Flat]:
        """What this rank saves: over all ranks everything once."""
        return flats.shared(self._held, self._rank, self._world_size)

    def begin_load(self) -> None:
        """Before anything is filled."""

    def end_load(self) -> None:
        """Derive the half-precision weights from the masters. Collective at other stages."""
        if self._half:
            with torch.no_grad():
                for weight, master in self._pairs():
                    weight.copy_(master)

    def _pairs(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Each weight of the model that is trained and what the optimizer updates in its stead."""
        if self._half:
            groups = zip(self._optimizer.fp16_groups, self._optimizer.fp32_groups, strict=True)
            return [pair for weights, masters in groups for pair in zip(weights, masters, strict=True)]
        return [
            (weight, weight) for group in self._optimizer.param_groups for weight in group["params"] if weight.numel()
        ]
