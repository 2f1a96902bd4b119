"""A shard: one rank's bytes with the checksums that prove them.

    data | index | footer

The index is JSON: the segments, one xxh3-128 for every `chunkSize` bytes of data, the rank's extras. The footer has a
fixed place and form for ever: length of the index (8 bytes), format version (4 bytes), magic (4 bytes), little-endian.
The checkpoint's manifest has the digest of index and footer, so that no byte of a shard is without a digest that was
computed before the checkpoint was committed. xxh3 is against damage; it does not stop a forger.
"""

from __future__ import annotations

import functools
import json
import struct
from collections.abc import Iterator, Sequence
from typing import Any, Final

from llmtrain_trainer.checkpoint.chunks import Chunks
from llmtrain_trainer.checkpoint.layout import CHUNK, Segment
from llmtrain_trainer.checkpoint.manifest import FORMAT, PLAIN, Damaged, NewerFormat, ShardEntry, digest
from llmtrain_trainer.checkpoint.storage import Storage
from llmtrain_trainer.checkpoint.throttle import Throttle

MAGIC: Final = b"LLMT"
_UNLIMITED: Final = Throttle(None)
_FOOTER: Final = struct.Struct("<QI4s")


def write_shard(
    storage: Storage,
    name: str,
    segments: Sequence[Segment],
    data: memoryview,
    extras: dict[str, Any],
    chunk: int = CHUNK,
    throttle: Throttle = _UNLIMITED,
) -> ShardEntry:
    """Write a shard straight from `data`, which must not change meanwhile; what the manifest has to say of it.

    `name` is `catalog.shard_name(step, fence, rank)`; `data` holds the segments' bytes at their offsets (any
    contiguous buffer, also an empty one); `extras` is JSON. Raises `StorageError`; nothing is at `name` then, or what
    was there before.
    """
    writing = _Writing(segments, data.cast("B") if data.nbytes else memoryview(b""), extras, chunk)
    storage.write(name, throttle.limit(writing.parts()), data.nbytes)
    return ShardEntry(name, data.nbytes + len(writing.tail), len(writing.tail), digest(writing.tail))


def entry_of(
    name: str, segments: Sequence[Segment], data: memoryview, extras: dict[str, Any], chunk: int = CHUNK
) -> ShardEntry:
    """What `write_shard` would return: it is equal if, and only if, all that is stored is."""
    writing = _Writing(segments, data.cast("B"), extras, chunk)
    for _ in writing.parts():
        pass
    return ShardEntry(name, data.nbytes + len(writing.tail), len(writing.tail), digest(writing.tail))


class _Writing:
    """The parts of a shard in their order; each chunk's digest is taken just before it is handed out."""

    def __init__(self, segments: Sequence[Segment], data: memoryview, extras: dict[str, Any], chunk: int) -> None:
        self._segments, self._data, self._extras, self._chunk = segments, data, extras, chunk
        self.tail = b""

    def parts(self) -> Iterator[memoryview]:
        digests = []
        for start in range(0, len(self._data), self._chunk):
            part = self._data[start : start + self._chunk]
            digests.append(digest(part))
            yield part
        index = {
            "segments": [segment.to_json() for segment in self._segments],
            "dataSize": len(self._data),
            "chunkSize": self._chunk,
            "chunks": digests,
            "extras": self._extras,
        }
        text = json.dumps(index, separators=(",", ":")).encode()
        self.tail = text + _FOOTER.pack(len(text), PLAIN, MAGIC)
        yield memoryview(self.tail)


class ShardReader(Chunks):
    """A shard of a committed checkpoint.

    `segments` and `extras` are those of `write_shard`; `size` is the number of bytes of data.
    """

    def __init__(self, storage: Storage, entry: ShardEntry) -> None:
        """Reads the index. Raises `Damaged` or `NewerFormat`, and `StorageError` if it cannot tell."""
        index = _read_index(storage, entry)
        self.segments = tuple(Segment.from_json(raw) for raw in index["segments"])
        self.extras: dict[str, Any] = index["extras"]
        fetch = functools.partial(storage.read_into, entry.name)
        super().__init__(entry.name, index["dataSize"], index["chunkSize"], index["chunks"], fetch)


def _read_index(storage: Storage, entry: ShardEntry) -> dict[str, Any]:
    """The index at the end of a shard, proved by the manifest's entry."""
    tail = bytearray(entry.tail)
    count = storage.read_into(entry.name, entry.size - entry.tail, memoryview(tail))
    if count < entry.tail:
        raise Damaged(entry.name, "it is missing or too short")
    if digest(memoryview(tail)) != entry.digest:
        raise Damaged(entry.name, "its index is not the one that the manifest names")
    length, version, magic = _FOOTER.unpack(tail[-_FOOTER.size :])
    if magic == MAGIC and version > FORMAT:
        raise NewerFormat(entry.name, version)
    if magic != MAGIC or length + _FOOTER.size != entry.tail:
        raise Damaged(entry.name, "it is no shard")
    index: dict[str, Any] = json.loads(tail[:length])
    return index
