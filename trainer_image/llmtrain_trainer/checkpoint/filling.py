"""Filling pieces from shards, wherever those lie: several streams at once, each byte read once and proved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import Final, Protocol

import torch

from llmtrain_trainer.checkpoint.extents import adjoins, joined
from llmtrain_trainer.checkpoint.layout import CHUNK, Read, Segment, plan_reads
from llmtrain_trainer.checkpoint.pieces import Piece, as_bytes

STREAMS: Final = 4
"""Streams that a rank reads at once."""


class Shard(Protocol):
    """Where bytes come from, for one thread: `read_into` proves what it reads, or raises."""

    segments: tuple[Segment, ...]

    def read_into(self, offset: int, into: memoryview) -> None: ...


Open = Callable[[], Shard]
"""Another reader of the same shard."""


def fill(shards: Sequence[Open], pieces: Sequence[Piece], chunk: int = CHUNK, threads: int = STREAMS) -> None:
    """Fill the pieces. Raises `LayoutError` if the shards do not hold them, and what opening and reading raises."""
    with ThreadPoolExecutor(threads, "restore") as pool:
        segments = list(pool.map(lambda open_shard: open_shard().segments, shards))
        reads = plan_reads([piece.segment for piece in pieces], segments, chunk)
        targets = [as_bytes(piece.tensor) for piece in pieces]
        each = -(-len(reads) // threads) or 1
        parts = [reads[at : at + each] for at in range(0, len(reads), each)]
        list(pool.map(lambda part: _read_part(shards, part, targets, chunk), parts))


def _read_part(shards: Sequence[Open], reads: Sequence[Read], targets: Sequence[torch.Tensor], chunk: int) -> None:
    scratch = torch.empty(chunk, dtype=torch.uint8)
    for number, group in groupby(reads, key=lambda read: read.shard):
        shard = shards[number]()
        for read in group:
            _carry_out(shard, read, targets, scratch)


def _carry_out(shard: Shard, read: Read, targets: Sequence[torch.Tensor], scratch: torch.Tensor) -> None:
    spans = _spans(read, targets)
    if all(target.device.type == "cpu" for _, target in spans):
        for offset, target in spans:
            shard.read_into(offset, _memory(target))
        return
    shard.read_into(read.offset, _memory(scratch[: read.length]))
    for offset, target in spans:
        begin = offset - read.offset
        target.copy_(scratch[begin : begin + len(target)])


def _spans(read: Read, targets: Sequence[torch.Tensor]) -> list[tuple[int, torch.Tensor]]:
    """(offset in the shard, where it goes): copies that are neighbours on both sides are one."""
    spans: list[tuple[int, torch.Tensor]] = []
    for copy in read.copies:
        target = targets[copy.wanted][copy.target : copy.target + copy.length]
        if spans:
            offset, last = spans[-1]
            if offset + len(last) == copy.source and adjoins(last, target):
                spans[-1] = offset, joined(last, target)
                continue
        spans.append((copy.source, target))
    return spans


def _memory(tensor: torch.Tensor) -> memoryview:
    return memoryview(tensor.numpy())  # type: ignore[arg-type]  # numpy's typing on 3.11
