"""Host memory in which a rank's state waits to be written, so that training stands still for the copy only.

On a CPU the copy is over when `copy` returns. On an accelerator it runs on a side stream into pinned memory while the
next forward and backward passes run, and the optimizer's next step is held back on the device until it is over
(`before_update`); the host does not wait. The memory is as large as the rank's state, reserved for the whole run and
touched beforehand, because a first copy into untouched pages takes ten times as long.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from llmtrain_trainer.checkpoint.layout import Segment, data_bytes
from llmtrain_trainer.checkpoint.pieces import WEIGHTS, Piece, as_bytes, placed
from llmtrain_trainer.checkpoint.storage.direct import ALIGNMENT


class Staging:
    """One copy of a rank's pieces. The owner sees to it that nothing is copied while the last copy is being read."""

    def __init__(self, device: torch.device) -> None:
        self._pinned = device.type != "cpu"
        self._stream = torch.Stream(device) if self._pinned else None
        self._copied: torch.Event | None = None
        self._source: Sequence[Piece] = ()
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._length = 0

    def reserve(self, pieces: Sequence[Piece]) -> None:
        """Have the memory for these pieces, all of it touched. Takes a second for a few gigabytes."""
        length = data_bytes(placed(pieces))
        if len(self._memory) < length:
            self._memory = _aligned(length, pinned=self._pinned)

    def copy(self, pieces: Sequence[Piece]) -> tuple[Segment, ...]:
        """Copy the pieces, or on an accelerator begin to; where each will be in `data`."""
        self.reserve(pieces)
        segments = placed(pieces)
        self._length = data_bytes(segments)
        if self._stream is None:
            self._copy(pieces, segments)
            return segments
        self._source = pieces  # zeros made for the copy alone: once given away their memory would be used anew
        # What the forward pass may write (persistent buffers) is copied in training's own stream, before it does.
        pairs = list(zip(pieces, segments, strict=True))
        here = [pair for pair in pairs if pair[0].kind == WEIGHTS]
        aside = [pair for pair in pairs if pair[0].kind != WEIGHTS]
        self._copy(*_unzip(here))
        self._stream.wait_stream(torch.accelerator.current_stream())
        with self._stream:
            self._copy(*_unzip(aside))
            self._copied = self._stream.record_event()
        return segments

    def before_update(self) -> None:
        """Let the device finish the copy before it changes what is being copied."""
        if self._copied is not None:
            torch.accelerator.current_stream().wait_event(self._copied)

    def data(self) -> memoryview:
        """The copy's bytes. Waits for it."""
        if self._copied is not None:
            self._copied.synchronize()
            self._source = ()
        return memoryview(self._memory.numpy()).cast("B")[: self._length]  # type: ignore[arg-type]  # numpy on 3.11

    def _copy(self, pieces: Sequence[Piece], segments: Sequence[Segment]) -> None:
        for piece, segment in zip(pieces, segments, strict=True):
            self._memory[segment.offset : segment.end].copy_(as_bytes(piece.tensor), non_blocking=self._pinned)


def _aligned(length: int, *, pinned: bool) -> torch.Tensor:
    """Zeros that a disk can take as they lie there."""
    if pinned:  # it begins at a page by itself, and torch would round one byte more up to the next power of two
        return torch.empty(length, dtype=torch.uint8, pin_memory=True).zero_()
    memory = torch.empty(length + ALIGNMENT, dtype=torch.uint8)
    begin = -memory.data_ptr() % ALIGNMENT
    return memory[begin : begin + length].zero_()


def _unzip(pairs: Sequence[tuple[Piece, Segment]]) -> tuple[list[Piece], list[Segment]]:
    return [piece for piece, _ in pairs], [segment for _, segment in pairs]
