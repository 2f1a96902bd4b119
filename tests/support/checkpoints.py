"""Real checkpoints without torch: shards of known numbers, and the way back that a restore takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmtrain_trainer.checkpoint.catalog import Catalog, shard_name
from llmtrain_trainer.checkpoint.layout import Segment, data_bytes, place, plan_reads
from llmtrain_trainer.checkpoint.manifest import Damaged, Manifest, ShardEntry
from llmtrain_trainer.checkpoint.shardfile import ShardReader, write_shard
from llmtrain_trainer.checkpoint.storage import Storage

CHUNK = 4096
PARAMETERS = {"embed.weight": 5000, "layer.0.weight": 3001, "norm.weight": 7}
KINDS = ("master", "exp_avg")


@dataclass(frozen=True)
class Restored:
    """What a restore found: the numbers by (parameter, kind), the extras by rank, and what it passed over."""

    step: int | None
    numbers: dict[tuple[str, str], bytes]
    extras: tuple[dict[str, Any], ...]
    state: dict[str, Any]
    skipped: tuple[str, ...] = ()


def numbers(step: int, seed: int = 0) -> dict[tuple[str, str], np.ndarray]:
    """All of a step's state, other numbers for every step and seed."""
    random = np.random.default_rng((seed, step))
    return {
        (name, kind): random.standard_normal(size, dtype=np.float32)
        for name, size in PARAMETERS.items()
        for kind in KINDS
    }


def expected(step: int, world_size: int, seed: int = 0) -> Restored:
    """What a restore of `save`'s checkpoint must give."""
    content = {key: values.tobytes() for key, values in numbers(step, seed).items()}
    return Restored(step, content, tuple(_extras(step, rank) for rank in range(world_size)), _state(step))


def write_shards(
    storage: Storage, step: int, fence: int, world_size: int, seed: int = 0, chunk: int = CHUNK
) -> tuple[ShardEntry, ...]:
    """Every rank's part of every parameter."""
    return tuple(_write_shard(storage, step, fence, rank, world_size, seed, chunk) for rank in range(world_size))


def save(
    catalog: Catalog, fence: int, step: int, world_size: int = 2, job: str = "job-a", seed: int = 0, number: int = 1
) -> Manifest:
    """A whole checkpoint, committed, of round `number`."""
    shards = write_shards(catalog.storage, step, fence, world_size, seed)
    manifest = Manifest(step, fence, job, number, world_size, 1.8e9 + step, shards, _state(step))
    catalog.commit(manifest)
    return manifest


def restore(storage: Storage) -> Restored:
    """The newest checkpoint of which every byte is good, and what was passed over on the way to it."""
    catalog, below, passed = Catalog(storage), None, []
    while True:
        manifest, skipped = catalog.newest_valid(below)
        passed += skipped
        if manifest is None:
            return Restored(None, {}, (), {}, tuple(passed))
        try:
            return _read(storage, manifest, tuple(passed))
        except Damaged as damaged:
            passed.append(str(damaged))
            below = manifest.step


def _write_shard(storage, step, fence, rank, world_size, seed, chunk) -> ShardEntry:
    content = numbers(step, seed)
    parts = [_share(key, len(values), rank, world_size) for key, values in content.items()]
    segments = place(parts)
    data = bytearray(data_bytes(segments))
    for segment in segments:
        values = content[segment.parameter, segment.kind][segment.start : segment.stop]
        data[segment.offset : segment.end] = values.tobytes()
    name = shard_name(step, fence, rank)
    return write_shard(storage, name, segments, memoryview(data), _extras(step, rank), chunk)


def _share(key: tuple[str, str], size: int, rank: int, world_size: int) -> Segment:
    return Segment(*key, size * rank // world_size, size * (rank + 1) // world_size, "float32")


def _read(storage: Storage, manifest: Manifest, skipped: Sequence[str]) -> Restored:
    readers = [ShardReader(storage, entry) for entry in manifest.parts]
    wanted = [Segment(name, kind, 0, size, "float32") for name, size in PARAMETERS.items() for kind in KINDS]
    content = [bytearray(segment.length) for segment in wanted]
    for read in plan_reads(wanted, [reader.segments for reader in readers], CHUNK):
        room = bytearray(read.length)
        readers[read.shard].read_into(read.offset, memoryview(room))
        for copy in read.copies:
            begin = copy.source - read.offset
            content[copy.wanted][copy.target : copy.target + copy.length] = room[begin : begin + copy.length]
    found = {(s.parameter, s.kind): bytes(data) for s, data in zip(wanted, content, strict=True)}
    return Restored(manifest.step, found, tuple(r.extras for r in readers), manifest.state, tuple(skipped))


def _extras(step: int, rank: int) -> dict[str, Any]:
    return {"rng": f"{step}/{rank}"}


def _state(step: int) -> dict[str, Any]:
    return {"data": {"position": step * 24}, "seed": 1, "loss_scale": None}
