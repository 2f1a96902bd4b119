"""Shards: what goes in comes out, and nothing else."""

from __future__ import annotations

import random
import struct
import tracemalloc

import pytest

from llmtrain_trainer.checkpoint import manifest as manifests
from llmtrain_trainer.checkpoint.layout import Segment, place
from llmtrain_trainer.checkpoint.manifest import Damaged, NewerFormat, ShardEntry
from llmtrain_trainer.checkpoint.shardfile import ShardReader, write_shard
from llmtrain_trainer.checkpoint.storage import FileStorage, open_storage

CHUNK = 64
NAME = "step-000000000001/shard-00000001-00000.bin"


class Counting:
    """A storage that notes what is read of it."""

    def __init__(self, storage) -> None:
        self.storage, self.reads = storage, []

    def read_into(self, name, offset, into) -> int:
        self.reads.append((offset, len(into)))
        return self.storage.read_into(name, offset, into)


@pytest.fixture
def storage(tmp_path):
    return open_storage(f"file://{tmp_path}")


def content(length) -> bytes:
    return random.Random(length).randbytes(length)


@pytest.mark.parametrize("length", [0, 1, 63, 64, 65, 128, 1000])
def test_data_segments_and_extras_come_back(storage, length):
    """Also nothing, and data that ends in the middle of a chunk."""
    data = content(length)
    segments = place([Segment("w", "master", 0, length // 4, "float32")] if length >= 4 else [])
    entry = write_shard(storage, NAME, segments, memoryview(data), {"rng": [1, 2]}, CHUNK)
    reader = ShardReader(storage, entry)
    room = bytearray(length)
    reader.read_into(0, memoryview(room))
    assert (bytes(room), reader.size, reader.segments, reader.extras) == (data, length, segments, {"rng": [1, 2]})
    assert reader.damage() == ()


@pytest.mark.parametrize("seed", range(20))
def test_any_range_is_right(storage, seed):
    """Whatever chunks it touches, in any order."""
    data, chance = content(1000), random.Random(seed)
    reader = ShardReader(storage, write_shard(storage, NAME, (), memoryview(data), {}, CHUNK))
    for _ in range(20):
        begin = chance.randrange(1000)
        room = bytearray(chance.randrange(1001 - begin))
        reader.read_into(begin, memoryview(room))
        assert bytes(room) == data[begin : begin + len(room)]


def test_a_range_outside_the_data_is_the_callers_mistake(storage):
    """It would else read the index as if it were weights."""
    reader = ShardReader(storage, write_shard(storage, NAME, (), memoryview(content(100)), {}, CHUNK))
    with pytest.raises(ValueError, match="100 bytes of data, not 101"):
        reader.read_into(99, memoryview(bytearray(2)))


def test_ascending_reads_read_each_chunk_once(storage):
    """Many small parameters share a chunk."""
    entry = write_shard(storage, NAME, (), memoryview(content(256)), {}, CHUNK)
    counting = Counting(storage)
    reader = ShardReader(counting, entry)
    counting.reads.clear()
    for begin in range(0, 256, 16):
        reader.read_into(begin, memoryview(bytearray(16)))
    assert counting.reads == [(0, 64), (64, 64), (128, 64), (192, 64)]


def test_data_is_not_copied_on_the_way(storage):
    """A rank's state is gigabytes; a second one does not fit."""
    data = memoryview(bytearray(32 * 2**20))
    tracemalloc.start()
    try:
        entry = write_shard(storage, NAME, (), data, {})
        room = memoryview(bytearray(len(data)))
        begin = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        ShardReader(storage, entry).read_into(0, room)
        peak = tracemalloc.get_traced_memory()[1] - begin
    finally:
        tracemalloc.stop()
    assert peak < 2**20


def test_writing_makes_no_second_copy(storage):
    """As above, on the way out."""
    data = memoryview(bytearray(32 * 2**20))
    tracemalloc.start()
    try:
        write_shard(storage, NAME, (), data, {})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**20


def test_every_damaged_chunk_is_named(storage, tmp_path):
    """By its number."""
    entry = write_shard(storage, NAME, (), memoryview(content(640)), {}, CHUNK)
    data = bytearray((tmp_path / NAME).read_bytes())
    data[0] ^= 1
    data[130] ^= 128
    (tmp_path / NAME).write_bytes(data)
    reader = ShardReader(storage, entry)
    assert [why.split(":")[0] for why in reader.damage()] == ["chunk 1 of 10", "chunk 3 of 10"]
    reader.read_into(64, memoryview(bytearray(64)))
    with pytest.raises(Damaged, match="chunk 3 of 10") as caught:
        reader.read_into(100, memoryview(bytearray(100)))
    assert caught.value.name == NAME


def test_after_damage_the_kept_chunk_is_not_used(storage, tmp_path):
    """A second try must not hand out what failed to prove itself."""
    entry = write_shard(storage, NAME, (), memoryview(content(128)), {}, CHUNK)
    data = bytearray((tmp_path / NAME).read_bytes())
    data[70] ^= 1
    (tmp_path / NAME).write_bytes(data)
    reader = ShardReader(storage, entry)
    for _ in range(2):
        with pytest.raises(Damaged):
            reader.read_into(65, memoryview(bytearray(10)))


def test_a_newer_format_is_refused_by_name(storage: FileStorage, tmp_path):
    """The footer's place and form never change, so that every version can tell."""
    entry = write_shard(storage, NAME, (), memoryview(content(10)), {}, CHUNK)
    data = bytearray((tmp_path / NAME).read_bytes())
    data[-8:-4] = struct.pack("<I", manifests.FORMAT + 1)
    (tmp_path / NAME).write_bytes(data)
    with pytest.raises(Damaged, match="not the one that the manifest names"):
        ShardReader(storage, entry)
    newer = ShardEntry(entry.name, entry.size, entry.tail, manifests.digest(bytes(data[-entry.tail :])))
    with pytest.raises(NewerFormat, match=f"{NAME} has format {manifests.FORMAT + 1}"):
        ShardReader(storage, newer)
