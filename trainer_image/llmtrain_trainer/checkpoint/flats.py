"""What an optimizer updates as one tensor, and which ranges of which parameters lie in it.

This is the one form that every ZeRO stage's bookkeeping is brought into: a whole parameter at stage 0, a rank's part of
a parameter group at stages 1 and 2, a rank's parts of the parameters of a sub-group at stage 3. Padding is in no range.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from llmtrain_trainer.checkpoint.layout import share
from llmtrain_trainer.checkpoint.pieces import MASTER, Piece
from llmtrain_trainer.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Range:
    """Elements [start, stop) of a flattened parameter, at element `offset` of the flat tensor."""

    parameter: str
    start: int
    stop: int
    offset: int


@dataclass(frozen=True, slots=True)
class Flat:
    """`master` has any shape and is the key of its state in `optimizer`; the ranges count its elements flattened.

    `parameters` are those that the optimizer updates together with these ranges, on other ranks too: numbers such as
    Adam's step count are theirs in common.
    """

    master: torch.Tensor
    optimizer: torch.optim.Optimizer
    parameters: tuple[str, ...]
    ranges: tuple[Range, ...]

    @property
    def state(self) -> dict[str, Any]:
        """The optimizer's state of the master, empty before the first step."""
        state: dict[str, Any] = self.optimizer.state.get(self.master, {})
        return state

    def pieces(self, kind: str, tensor: torch.Tensor) -> Iterator[Piece]:
        """The ranges within `tensor`, which is shaped like the master."""
        flat = flattened(tensor, f"{kind} of {self.parameters[0]}")
        for part in self.ranges:
            yield Piece(part.parameter, kind, part.start, flat.narrow(0, part.offset, part.stop - part.start))

    def masters(self) -> Iterator[Piece]:
        """The ranges of the weights themselves."""
        return self.pieces(MASTER, self.master)


def flattened(tensor: torch.Tensor, what: str) -> torch.Tensor:
    """The same memory with shape (n,). Raises `ConfigError` if there is no such view."""
    if not tensor.is_contiguous():
        raise ConfigError(
            f"spec.model: {what} is not contiguous in memory and cannot be saved in checkpoints; use deepspeed.stage "
            "1, 2 or 3, which flatten the weights"
        )
    return tensor.detach().view(-1)


def cut(places: Iterable[tuple[str, int, int]], first: int, last: int) -> tuple[Range, ...]:
    """The part [first, last) of a flat tensor in which each (parameter, offset, size) lies; gaps are padding."""
    ranges = []
    for parameter, offset, size in places:
        start, stop = max(first - offset, 0), min(last - offset, size)
        if start < stop:
            ranges.append(Range(parameter, start, stop, offset + start - first))
    return tuple(ranges)


def shared(flats: Sequence[Flat], rank: int, world_size: int) -> list[Flat]:
    """This rank's even part of flats that every rank holds alike; each is one whole parameter."""
    sizes = [flat.master.numel() for flat in flats]
    return [
        replace(flats[index], ranges=(Range(flats[index].parameters[0], start, stop, start),))
        for index, start, stop in share(sizes, rank, world_size)
    ]
