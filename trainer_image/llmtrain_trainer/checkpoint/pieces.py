"""Live training state as named ranges of flat parameters: what is copied into a shard, and filled from shards.

A piece shares its memory with the model or the optimizer: reading it is reading the state, writing it changes the
state. Pieces are therefore only good between two steps, and a copy must be over before the next step begins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import torch

from llmtrain_trainer.checkpoint.layout import Segment, place

MASTER: Final = "master"
"""The weights that the optimizer updates, in fp32; the model's own in half precision derive from them."""

WEIGHTS: Final = "weights"
"""What no optimizer updates, in its own element type: frozen parameters and persistent buffers."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A contiguous range of a flattened parameter.

    `parameter` is the model's name for it (the first, if it is tied), `kind` is MASTER, WEIGHTS or the name of an
    optimizer state as torch calls it; `start` counts elements; `tensor` has shape (n,), n > 0, on any device.
    """

    parameter: str
    kind: str
    start: int
    tensor: torch.Tensor

    @property
    def segment(self) -> Segment:
        """The range, not yet placed in a shard."""
        stop = self.start + self.tensor.numel()
        return Segment(self.parameter, self.kind, self.start, stop, dtype_name(self.tensor.dtype))


Fill = Callable[[list[Piece]], None]
"""Writes the stored bytes of each piece into its tensor, all of them or it raises."""


def placed(pieces: Iterable[Piece]) -> tuple[Segment, ...]:
    """The segments of one shard that holds `pieces` in this order."""
    return place(piece.segment for piece in pieces)


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The memory of a contiguous tensor of shape (n,) as uint8, shape (n * item,); shares it."""
    return tensor.detach().view(torch.uint8)


def dtype_name(dtype: torch.dtype) -> str:
    """torch's name without its module: "float32"."""
    return str(dtype).removeprefix("torch.")
