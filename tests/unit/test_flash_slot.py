"""Slots: what is published is whole, what is not is not there, and damage does not pass."""

import dataclasses
import json
import os

import pytest

from llmtrain_trainer.checkpoint.layout import Segment
from llmtrain_trainer.checkpoint.manifest import Damaged, NewerFormat, digest
from llmtrain_trainer.flash import header as headers
from llmtrain_trainer.flash import slot
from llmtrain_trainer.flash.header import CHUNK, Edition, Fixed, Header
from llmtrain_trainer.flash.shards import LocalShard
from llmtrain_trainer.flash.slot import Slot, StoreFull
from llmtrain_trainer.flash.store import Ack, Store

SIZE = CHUNK + 4096


def header(step=1, rank=0, number=1, world=1, size=SIZE):
    fixed = Fixed("job", (Segment("w", "master", 0, size // 4, "float32", 0),), {"parameters": {}}, {})
    return Header(Edition(step, number, world), rank, fixed, {"counters": {}}, {"step": step}, {"torch": "x"})


def publish(room, head):
    return room.publish(head, headers.encode(head, head.fixed.encode()))


@pytest.fixture
def room(tmp_path):
    made = Slot(tmp_path / "own-0-0")
    made.reserve(SIZE)
    made.memory[:] = bytes(range(256)) * (SIZE // 256)
    return made


def test_a_header_comes_back_as_it_was():
    """All of it: what is fixed, what changes, what belongs to the rank alone."""
    head = header(7, 1, 3, 2)
    assert headers.decode(headers.encode(head, head.fixed.encode()), "x") == head


def test_a_newer_format_is_no_damage():
    """A later version's snapshot is left alone rather than called broken."""
    rest = b'{"formatVersion":99}\n{}'
    with pytest.raises(NewerFormat):
        headers.decode(digest(rest).encode() + b"\n" + rest, "x")


def test_nothing_is_there_before_it_is_published_and_after_it_was_withdrawn(room):
    """Between the two, it is; with the bytes that were written."""
    assert slot.held(room.stem) is None
    held = publish(room, header())
    assert slot.held(room.stem) == held
    assert held.stands
    into = memoryview(bytearray(SIZE))
    LocalShard(held).read_into(0, into)
    assert into == room.memory
    room.withdraw()
    assert slot.held(room.stem) is None
    assert not held.stands


def test_another_snapshot_in_the_slot_is_noticed(room):
    """A reader that began with the last one must not take the new one's bytes for it."""
    held = publish(room, header(1))
    assert slot.prove(held) is not None
    room.withdraw()
    newer = publish(room, header(2))
    assert not held.stands
    assert slot.sums(newer) is None


def test_checksums_of_another_snapshot_are_damage(room):
    """Whose the data are cannot be said: a head was put over them that is not theirs. Computed anew they hold."""
    held = publish(room, header(1))
    slot.prove(held)
    other = publish(room, header(2))
    with pytest.raises(Damaged, match="of another snapshot"):
        slot.sums(other)
    assert not slot.has_sums(other)
    assert slot.compute(other) == slot.sums(other)


def test_flipped_bits_are_found_once_the_checksums_are_there(room):
    """In any chunk; the reader gets none of the bytes."""
    held = publish(room, header())
    assert len(slot.prove(held)) == 2
    assert slot.prove(held) == slot.sums(held)
    room.memory[CHUNK + 5] ^= 1
    shard = LocalShard(held)
    assert shard.damage() == ("chunk 2 of 2: its bytes do not have their checksum",)
    with pytest.raises(Damaged, match="chunk 2 of 2"):
        shard.read_into(CHUNK - 8, memoryview(bytearray(64)))


def test_truncated_data_is_no_snapshot(room):
    """Its head says how long it has to be."""
    publish(room, header())
    os.truncate(room.stem.with_suffix(slot.DATA), SIZE - 1)
    with pytest.raises(Damaged, match="ends 1 bytes early"):
        slot.held(room.stem)


@pytest.mark.parametrize("suffix", [slot.HEAD, slot.SUMS])
def test_damaged_head_or_checksums_are_damage(room, suffix):
    """Every byte of both is under a digest."""
    held = publish(room, header())
    slot.prove(held)
    path = room.stem.with_suffix(suffix)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    with pytest.raises(Damaged):
        slot.sums(slot.held(room.stem))


def test_reserving_again_keeps_what_fits(room, tmp_path):
    """A worker that is started anew finds its last snapshot; one of another size is withdrawn first."""
    held = publish(room, header())
    again = Slot(room.stem)
    again.reserve(SIZE)
    assert slot.held(room.stem) == held
    other = Slot(room.stem)
    other.reserve(2 * SIZE)
    assert slot.held(room.stem) is None
    assert len(other.memory) == 2 * SIZE


def test_a_full_store_says_what_is_missing(tmp_path, monkeypatch):
    """And leaves the file as it was."""

    def full(file, offset, length):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    room = Slot(tmp_path / "own-0-0")
    with pytest.raises(StoreFull) as caught:
        room.reserve(1000)
    assert caught.value.needed == 1000
    assert room.size == 0


def test_a_store_offers_what_is_whole_and_of_this_job(tmp_path):
    """Damaged snapshots are named; another job's are none of ours."""
    store = Store(tmp_path, "job")
    for number, head in enumerate((header(1), header(2))):
        room = store.own(0, number)
        room.reserve(SIZE)
        publish(room, head)
    foreign = store.own(1, 0)
    foreign.reserve(SIZE)
    publish(foreign, dataclasses.replace(header(9), fixed=dataclasses.replace(header().fixed, job_uid="other")))
    (tmp_path / "own-0-1.head").write_bytes(b"nonsense")
    found, damaged = store.scan()
    assert [held.header.edition.step for held in found] == [1]
    assert [each.name for each in damaged] == ["own-0-1"]


def test_what_a_round_keeps_and_what_it_gives_up(tmp_path):
    """Of a worker's own the memory stays for the next snapshots; copies of rounds before go."""
    store = Store(tmp_path, "job")
    rooms = [
        store.own(0, 0),
        store.own(0, 1),
        store.replica(Edition(3, 1, 2), 1, 0),
        store.replica(Edition(4, 1, 2), 1, 1),
    ]
    for step, room in enumerate(rooms, 1):
        room.reserve(SIZE)
        publish(room, header(step if step < 3 else step - 1, rank=step // 3, world=2))
    keep = Edition(2, 1, 2)
    store.withdraw_own(0, keep)
    store.drop_replicas(2, keep)
    assert [held.stem.name for held in store.scan()[0]] == ["own-0-1", "replica-1-1-0"]
    assert rooms[0].size == SIZE
    assert rooms[3].size == 0


def test_an_acknowledgement_is_read_as_it_was_said(tmp_path):
    """None before there is one."""
    store = Store(tmp_path, "job")
    assert store.ack(0) is None
    store.say(0, Ack(2, 7, (1,)))
    assert store.ack(0) == Ack(2, 7, (1,))
    assert store.durable_step == -1
    store.note_durable(5)
    assert store.durable_step == 5
    assert json.loads((tmp_path / "own-0.ack").read_text()) == [2, 7, [1]]
