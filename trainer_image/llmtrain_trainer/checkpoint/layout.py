"""Where each range of each parameter lies in a checkpoint's shards, and what to read for other ranges. Pure.

A shard is one rank's bytes: segments one after the other, each a range of one parameter's flattened elements. How the
ranges were cut (world size, ZeRO stage) does not matter to a reader: it asks for the ranges that it needs.
Guarantee of `plan_reads`: every byte wanted is copied exactly once, from the one segment that holds it, or
`LayoutError` is raised; nothing is guessed or left as it was. No torch here: command-line tools read layouts too.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

CHUNK: Final = 16 * 2**20
"""Bytes of a shard's data under one checksum; the unit in which damage is noticed and shards are read."""

ALIGNMENT: Final = 64
"""Segments begin at multiples of this many bytes, so that any element type can be viewed in place."""

ITEM_BYTES: Final = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
    "complex64": 8,
}
"""Bytes of an element, by torch's name of its type."""


class LayoutError(ValueError):
    """The shards do not hold what is wanted exactly once; names the parameter, the kind and the range."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Elements [start, stop) of a flattened parameter, at byte `offset` of a shard's data.

    `kind` is what of the parameter it is (`pieces.MASTER`, "exp_avg", ...). In a list of wanted segments `offset` has
    no meaning.
    """

    parameter: str
    kind: str
    start: int
    stop: int
    dtype: str
    offset: int = 0

    @property
    def item(self) -> int:
        """Bytes of one element."""
        return ITEM_BYTES[self.dtype]

    @property
    def length(self) -> int:
        """Bytes."""
        return (self.stop - self.start) * self.item

    @property
    def end(self) -> int:
        """First byte of the shard's data after this segment."""
        return self.offset + self.length

    def to_json(self) -> list[Any]:
        """A JSON array; `from_json` reads it."""
        return [self.parameter, self.kind, self.start, self.stop, self.dtype, self.offset]

    @classmethod
    def from_json(cls, raw: Any) -> Segment:
        """Raises `LayoutError` for anything that is no segment."""
        match raw:
            case [str(parameter), str(kind), int(start), int(stop), str(dtype), int(offset)] if (
                0 <= start < stop and dtype in ITEM_BYTES and offset >= 0
            ):
                return cls(parameter, kind, start, stop, dtype, offset)
        raise LayoutError(f"{raw!r} is no segment of a shard")


@dataclass(frozen=True, slots=True)
class Copy:
    """Bytes [source, source + length) of a shard's data go to byte `target` of wanted segment number `wanted`."""

    wanted: int
    target: int
    source: int
    length: int


@dataclass(frozen=True, slots=True)
class Read:
    """Bytes [offset, offset + length) of shard number `shard`, all within one chunk, and where they go.

    The copies are in the shard's order, lie within the range, and need not fill it.
    """

    shard: int
    offset: int
    length: int
    copies: tuple[Copy, ...]


Reads = tuple[Read, ...]
"""In the order of shards and offsets; each chunk of a shard occurs at most once."""


def place(segments: Iterable[Segment]) -> tuple[Segment, ...]:
    """The same segments in the same order, each with its offset in one shard."""
    placed, offset = [], 0
    for segment in segments:
        offset = -(-offset // ALIGNMENT) * ALIGNMENT
        placed.append(Segment(segment.parameter, segment.kind, segment.start, segment.stop, segment.dtype, offset))
        offset += segment.length
    return tuple(placed)


def data_bytes(segments: Sequence[Segment]) -> int:
    """Length of a shard's data."""
    return max((segment.end for segment in segments), default=0)


def share(sizes: Sequence[int], rank: int, world_size: int) -> list[tuple[int, int, int]]:
    """A rank's even part of what all ranks hold alike: (index into `sizes`, start, stop), all of it over all ranks."""
    total = sum(sizes)
    first, last = total * rank // world_size, total * (rank + 1) // world_size
    parts, begin = [], 0
    for index, size in enumerate(sizes):
        start, stop = max(first - begin, 0), min(last - begin, size)
        if start < stop:
            parts.append((index, start, stop))
        begin += size
    return parts


def plan_reads(wanted: Sequence[Segment], shards: Sequence[Sequence[Segment]], chunk: int = CHUNK) -> Reads:
    """What to read so that every element of `wanted` comes from where it lies.

    Raises `LayoutError` if a range is in no shard, in two places, or there in another element type.
    """
    sources = _index(shards)
    by_chunk: dict[tuple[int, int], list[Copy]] = {}
    for number, segment in enumerate(wanted):
        for shard, copy in _copies(number, segment, sources.get((segment.parameter, segment.kind), [])):
            for part in _cut(copy, chunk):
                by_chunk.setdefault((shard, part.source // chunk), []).append(part)
    return tuple(_read(shard, by_chunk[shard, number]) for shard, number in sorted(by_chunk))


_Sources = list[tuple[int, Segment]]


def _index(shards: Sequence[Sequence[Segment]]) -> dict[tuple[str, str], _Sources]:
    """(shard, segment) of each parameter and kind, in the order of elements."""
    index: dict[tuple[str, str], _Sources] = {}
    for shard, segments in enumerate(shards):
        for segment in segments:
            index.setdefault((segment.parameter, segment.kind), []).append((shard, segment))
    for sources in index.values():
        sources.sort(key=lambda source: source[1].start)
        for (first, one), (second, other) in pairwise(sources):
            if one.stop > other.start:
                overlap = _range(other, other.start, min(one.stop, other.stop))
                raise LayoutError(f"{overlap} is in two places: shards {first} and {second}")
    return index


def _copies(number: int, segment: Segment, sources: _Sources) -> Iterable[tuple[int, Copy]]:
    """(shard, copy) for each source that holds a part of `segment`."""
    at = segment.start
    begin = max(0, bisect_right(sources, at, key=lambda source: source[1].start) - 1)
    for shard, source in sources[begin:]:
        if source.start >= segment.stop:
            break
        if source.stop <= at:
            continue
        if source.start > at:
            break
        if source.dtype != segment.dtype:
            raise LayoutError(f"{_range(segment)} is stored as {source.dtype}, but {segment.dtype} is needed")
        stop = min(source.stop, segment.stop)
        where = source.offset + (at - source.start) * source.item
        yield shard, Copy(number, (at - segment.start) * source.item, where, (stop - at) * source.item)
        at = stop
    if at < segment.stop:
        covered_from = next((source.start for _, source in sources if source.start > at), segment.stop)
        raise LayoutError(f"{_range(segment, at, min(covered_from, segment.stop))} is in no shard")


def _cut(copy: Copy, chunk: int) -> Iterable[Copy]:
    """The same bytes in parts that each lie within one chunk of the shard."""
    done = 0
    while done < copy.length:
        source = copy.source + done
        length = min(copy.length - done, chunk - source % chunk)
        yield Copy(copy.wanted, copy.target + done, source, length)
        done += length


def _read(shard: int, copies: list[Copy]) -> Read:
    ordered = tuple(sorted(copies, key=lambda copy: copy.source))
    offset = ordered[0].source
    return Read(shard, offset, max(copy.source + copy.length for copy in ordered) - offset, ordered)


def _range(segment: Segment, start: int | None = None, stop: int | None = None) -> str:
    begin, end = segment.start if start is None else start, segment.stop if stop is None else stop
    return f"{segment.kind} of {segment.parameter}, elements {begin} to {end - 1}"
