"""A shard: one rank's bytes with the checksums that prove them.

    data | index | footer

The index is JSON: the segments, one xxh3-128 for every `chunkSize` bytes of data, the rank's extras. The footer has a
fixed place and form for ever: length of the index (8 bytes), format version (4 bytes), magic (4 bytes), little-endian.
The checkpoint's manifest has the digest of index and footer, so that no byte of a shard is without a digest that was
computed before the checkpoint was committed. xxh3 is against damage; it does not stop a forger.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmtrain_trainer.checkpoint.layout import CHUNK, Segment
from llmtrain_trainer.checkpoint.manifest import ShardEntry
from llmtrain_trainer.checkpoint.storage import Storage


def write_shard(
    storage: Storage,
    name: str,
    segments: Sequence[Segment],
    data: memoryview,
    extras: dict[str, Any],
    chunk: int = CHUNK,
) -> ShardEntry:
    """Write a shard straight from `data`, which must not change meanwhile; what the manifest has to say of it.

    `name` is `catalog.shard_name(step, fence, rank)`; `data` holds the segments' bytes at their offsets (any
    contiguous buffer, also an empty one); `extras` is JSON. Raises `StorageError`; nothing is at `name` then, or what
    was there before.
    """
    raise NotImplementedError


class ShardReader:
    """A shard of a committed checkpoint. Nothing that it hands out is unproved.

    `segments` and `extras` are those of `write_shard`; `size` is the number of bytes of data.
    """

    segments: tuple[Segment, ...]
    extras: dict[str, Any]
    size: int

    def __init__(self, storage: Storage, entry: ShardEntry) -> None:
        """Reads the index. Raises `Damaged` if it is not what the manifest says, `StorageError` if it cannot tell."""
        raise NotImplementedError

    def read_into(self, offset: int, into: memoryview) -> None:
        """Fill `into` with the data from byte `offset` on, checking every chunk that it touches.

        Whole chunks go straight into `into`. The chunk that was read last is kept, so reads in ascending order read
        each chunk once. Not for several threads at once. Raises `Damaged` (what is in `into` is then worthless) or
        `StorageError`.
        """
        raise NotImplementedError

    def damage(self) -> tuple[str, ...]:
        """Every chunk that is not what it was, each as `chunk 3 of 9: why`; empty if all is well."""
        raise NotImplementedError
