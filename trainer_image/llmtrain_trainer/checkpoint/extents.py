"""Pieces laid out for a copy: neighbours in memory stay neighbours, and are copied in one go.

A ZeRO partition is thousands of pieces of a few flat tensors; copying piece by piece would take longer than the bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from llmtrain_trainer.checkpoint.layout import ALIGNMENT, Segment, data_bytes
from llmtrain_trainer.checkpoint.pieces import WEIGHTS, Piece, as_bytes


@dataclass(frozen=True, slots=True)
class Extent:
    """Bytes of live state, uint8 of shape (n,), that go to `offset` of a shard's data.

    `transient`: the forward pass may write them already (persistent buffers).
    """

    source: torch.Tensor
    offset: int
    transient: bool

    @property
    def end(self) -> int:
        """First byte of the data after it."""
        return self.offset + len(self.source)


@dataclass(frozen=True, slots=True)
class Extents:
    """One rank's state in the form in which it is copied, and where each piece of it will lie."""

    extents: tuple[Extent, ...]
    segments: tuple[Segment, ...]

    @property
    def size(self) -> int:
        """Bytes of the data."""
        return data_bytes(self.segments)

    @classmethod
    def of(cls, pieces: Iterable[Piece]) -> Extents:
        """In the order of the pieces. Extents begin at multiples of `layout.ALIGNMENT`."""
        extents: list[Extent] = []
        segments = []
        for piece in pieces:
            source, transient = as_bytes(piece.tensor), piece.kind == WEIGHTS
            last = extents[-1] if extents else None
            if last and last.transient == transient and adjoins(last.source, source):
                offset = last.end
                extents[-1] = replace(last, source=joined(last.source, source))
            else:
                offset = -(-last.end // ALIGNMENT) * ALIGNMENT if last else 0
                extents.append(Extent(source, offset, transient))
            segments.append(replace(piece.segment, offset=offset))
        return cls(tuple(extents), tuple(segments))


def adjoins(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether `other` begins in memory where `one` ends; both uint8 of shape (n,)."""
    return (
        one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
        and one.device == other.device
        and one.data_ptr() + len(one) == other.data_ptr()
    )


def joined(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Both as one tensor, which shares their memory; they adjoin."""
    return torch.empty(0, dtype=torch.uint8, device=one.device).set_(
        one.untyped_storage(), one.storage_offset(), (len(one) + len(other),), (1,)
    )


class Copier:
    """Copies extents into host memory, one copy at a time.

    On a CPU the copy is over when `copy` returns. On an accelerator it runs on a side stream while the next forward and
    backward passes run, and the optimizer's next step is held back on the device until it is over (`before_update`);
    the host does not wait. There the memory has to be pinned.
    """

    def __init__(self, device: torch.device) -> None:
        self.pinned = device.type != "cpu"
        self._stream = torch.Stream(device) if self.pinned else None
        self._copied: torch.Event | None = None
        self._source: Sequence[Extent] = ()

    def copy(self, extents: Sequence[Extent], memory: torch.Tensor) -> None:
        """Copy, or on an accelerator begin to. `memory` is uint8 of shape (n,), large enough."""
        if self._stream is None:
            _copy(extents, memory)
            return
        self._source = extents  # zeros made for the copy alone: once given away their memory would be used anew
        # What the forward pass may write is copied in training's own stream, before it does.
        _copy([extent for extent in extents if extent.transient], memory)
        self._stream.wait_stream(torch.accelerator.current_stream())
        with self._stream:
            _copy([extent for extent in extents if not extent.transient], memory)
            self._copied = self._stream.record_event()

    def before_update(self) -> None:
        """Let the device finish the copy before it changes what is being copied."""
        if self._copied is not None:
            torch.accelerator.current_stream().wait_event(self._copied)

    def wait(self) -> None:
        """Until the copy is over."""
        if self._copied is not None:
            self._copied.synchronize()
            self._source = ()


def _copy(extents: Sequence[Extent], memory: torch.Tensor) -> None:
    for extent in extents:
        memory[extent.offset : extent.end].copy_(extent.source, non_blocking=True)
