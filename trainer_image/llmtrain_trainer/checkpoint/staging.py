"""Host memory in which a rank's state waits to be written, so that training stands still for the copy only.

The memory is as large as the rank's state, reserved for the whole run and touched beforehand, because a first copy into
untouched pages takes ten times as long. Without snapshots in memory (`flash`), which do the same and more.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from llmtrain_trainer.checkpoint.extents import Copier, Extents
from llmtrain_trainer.checkpoint.layout import Segment
from llmtrain_trainer.checkpoint.pieces import Piece
from llmtrain_trainer.checkpoint.storage.direct import ALIGNMENT


class Staging:
    """One copy of a rank's pieces. The owner sees to it that nothing is copied while the last copy is being read."""

    def __init__(self, device: torch.device) -> None:
        self._copier = Copier(device)
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._length = 0

    def reserve(self, pieces: Sequence[Piece]) -> None:
        """Have the memory for these pieces, all of it touched. Takes a second for a few gigabytes."""
        self._reserve(Extents.of(pieces).size)

    def copy(self, pieces: Sequence[Piece]) -> tuple[Segment, ...]:
        """Copy the pieces, or on an accelerator begin to; where each will be in `data`."""
        layout = Extents.of(pieces)
        self._reserve(layout.size)
        self._length = layout.size
        self._copier.copy(layout.extents, self._memory)
        return layout.segments

    def before_update(self) -> None:
        """See `Copier.before_update`."""
        self._copier.before_update()

    def data(self) -> memoryview:
        """The copy's bytes. Waits for it."""
        self._copier.wait()
        return memoryview(self._memory.numpy()).cast("B")[: self._length]  # type: ignore[arg-type]  # numpy on 3.11

    def _reserve(self, length: int) -> None:
        if len(self._memory) < length:
            self._memory = _aligned(length, pinned=self._copier.pinned)


def _aligned(length: int, *, pinned: bool) -> torch.Tensor:
    """Zeros that a disk can take as they lie there."""
    if pinned:  # it begins at a page by itself, and torch would round one byte more up to the next power of two
        return torch.empty(length, dtype=torch.uint8, pin_memory=True).zero_()
    memory = torch.empty(length + ALIGNMENT, dtype=torch.uint8)
    begin = -memory.data_ptr() % ALIGNMENT
    return memory[begin : begin + length].zero_()
