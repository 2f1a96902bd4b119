"""What no optimizer updates and a checkpoint needs all the same: frozen parameters and persistent buffers.

Frozen parameters are partitioned at ZeRO stage 3, where each rank saves its part, and replicated otherwise, where each
saves an even part. Buffers are replicated; they are saved by rank 0, for they may differ (running statistics).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from llmtrain_trainer.checkpoint.flats import flattened
from llmtrain_trainer.checkpoint.layout import share
from llmtrain_trainer.checkpoint.pieces import WEIGHTS, Piece, dtype_name
from llmtrain_trainer.checkpoint.zero3 import bounds


class Untrained:
    """Those of one model, on one rank."""

    def __init__(self, module: torch.nn.Module, trained: set[str], rank: int, world_size: int) -> None:
        persistent = module.state_dict().keys()
        self._rank, self._world_size = rank, world_size
        self._frozen = {
            name: weight for name, weight in module.named_parameters() if name not in trained and numel(weight)
        }
        self._buffers = {
            name: buffer for name, buffer in module.named_buffers() if name in persistent and buffer.numel()
        }

    def describe(self) -> dict[str, Any]:
        """As JSON: shape and element type of each, by name."""
        return {
            name: {"shape": shape(weight), "dtype": dtype_name(weight.dtype)}
            for name, weight in (self._frozen | self._buffers).items()
        }

    def held(self) -> list[Piece]:
        """What this rank has to fill."""
        return self._partitioned() + _whole(self._replicated()) + _whole(self._buffers)

    def owned(self) -> list[Piece]:
        """What this rank saves: over all ranks everything once."""
        whole = _whole(self._replicated())
        parts = [
            Piece(whole[index].parameter, WEIGHTS, start, whole[index].tensor[start:stop])
            for index, start, stop in share([piece.tensor.numel() for piece in whole], self._rank, self._world_size)
        ]
        return self._partitioned() + parts + (_whole(self._buffers) if self._rank == 0 else [])

    def _replicated(self) -> dict[str, torch.Tensor]:
        return {name: weight for name, weight in self._frozen.items() if not hasattr(weight, "ds_tensor")}

    def _partitioned(self) -> list[Piece]:
        pieces = []
        for name, weight in self._frozen.items():
            if hasattr(weight, "ds_tensor"):
                start, stop = bounds(weight, self._rank)
                if start < stop:
                    pieces.append(Piece(name, WEIGHTS, start, weight.ds_tensor.detach()[: stop - start]))
        return pieces


def shape(weight: torch.Tensor) -> list[int]:
    """Of the whole parameter, which at stage 3 is not the tensor's own."""
    return list(getattr(weight, "ds_shape", weight.shape))


def numel(weight: torch.Tensor) -> int:
    """Elements of the whole parameter."""
    return int(getattr(weight, "ds_numel", weight.numel()))


def _whole(weights: Mapping[str, torch.Tensor]) -> list[Piece]:
    return [Piece(name, WEIGHTS, 0, flattened(tensor, name)) for name, tensor in weights.items()]
