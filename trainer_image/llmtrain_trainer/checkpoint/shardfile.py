"""A shard: one rank's bytes with the checksums that prove them.

    data | index | footer

The index is JSON: the segments, one xxh3-128 for every `chunkSize` bytes of data, the rank's extras. The footer has a
fixed place and form for ever: length of the index (8 bytes), format version (4 bytes), magic (4 bytes), little-endian.
The checkpoint's manifest has the digest of index and footer, so that no byte of a shard is without a digest that was
computed before the checkpoint was committed. xxh3 is against damage; it does not stop a forger.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Sequence
from typing import Any, Final

from llmtrain_trainer.checkpoint.layout import CHUNK, Segment
from llmtrain_trainer.checkpoint.manifest import FORMAT, Damaged, NewerFormat, ShardEntry, digest
from llmtrain_trainer.checkpoint.storage import Storage

MAGIC: Final = b"LLMT"
_FOOTER: Final = struct.Struct("<QI4s")


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
    writing = _Writing(segments, data.cast("B") if data.nbytes else memoryview(b""), extras, chunk)
    storage.write(name, writing.parts(), data.nbytes)
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
        self.tail = text + _FOOTER.pack(len(text), FORMAT, MAGIC)
        yield memoryview(self.tail)


class ShardReader:
    """A shard of a committed checkpoint. Nothing that it hands out is unproved.

    `segments` and `extras` are those of `write_shard`; `size` is the number of bytes of data.
    """

    def __init__(self, storage: Storage, entry: ShardEntry) -> None:
        """Reads the index. Raises `Damaged` or `NewerFormat`, and `StorageError` if it cannot tell."""
        self._storage, self._name = storage, entry.name
        index = _read_index(storage, entry)
        self.segments = tuple(Segment.from_json(raw) for raw in index["segments"])
        self.extras: dict[str, Any] = index["extras"]
        self.size: int = index["dataSize"]
        self._chunk: int = index["chunkSize"]
        self._digests: list[str] = index["chunks"]
        self._kept = -1
        self._kept_data = memoryview(b"")

    def read_into(self, offset: int, into: memoryview) -> None:
        """Fill `into` with the data from byte `offset` on, checking every chunk that it touches.

        Whole chunks go straight into `into`. The chunk that was read last is kept, so reads in ascending order read
        each chunk once. Not for several threads at once. Raises `Damaged` (what is in `into` is then worthless) or
        `StorageError`, and ValueError for a range outside the data.
        """
        if not 0 <= offset <= offset + into.nbytes <= self.size:
            raise ValueError(f"{self._name} has {self.size} bytes of data, not {offset + into.nbytes}")
        left = into.cast("B") if into.nbytes else memoryview(b"")
        while left:
            number, inside = divmod(offset, self._chunk)
            length = self._length(number)
            if not inside and len(left) >= length:
                self._fetch(number, left[:length])
                taken = length
            else:
                part = self._cached(number)[inside : inside + len(left)]
                taken = len(part)
                left[:taken] = part
            offset, left = offset + taken, left[taken:]

    def damage(self) -> tuple[str, ...]:
        """Every chunk that is not what it was, each as `chunk 3 of 9: why`; empty if all is well."""
        found = []
        room = memoryview(bytearray(min(self._chunk, self.size)))
        for number in range(len(self._digests)):
            try:
                self._fetch(number, room[: self._length(number)])
            except Damaged as damaged:
                found.append(damaged.why)
        return tuple(found)

    def _length(self, number: int) -> int:
        return min(self._chunk, self.size - number * self._chunk)

    def _cached(self, number: int) -> memoryview:
        if number != self._kept:
            self._kept = -1
            if not self._kept_data:
                self._kept_data = memoryview(bytearray(min(self._chunk, self.size)))
            self._fetch(number, self._kept_data[: self._length(number)])
            self._kept = number
        return self._kept_data[: self._length(number)]

    def _fetch(self, number: int, into: memoryview) -> None:
        """Read chunk `number` into a place of its length, and prove what lies there then."""
        where = f"chunk {number + 1} of {len(self._digests)}"
        count = self._storage.read_into(self._name, number * self._chunk, into)
        if count < len(into):
            raise Damaged(self._name, f"{where}: it ends {len(into) - count} bytes early")
        if digest(into) != self._digests[number]:
            raise Damaged(self._name, f"{where}: its bytes do not have their checksum")


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
