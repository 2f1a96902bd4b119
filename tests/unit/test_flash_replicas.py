"""Copies between agents: real stores, real servers, a real network on loopback."""

import socket
import threading

import pytest

from llmtrain_trainer.checkpoint.layout import Segment
from llmtrain_trainer.checkpoint.manifest import Damaged
from llmtrain_trainer.flash import header as headers
from llmtrain_trainer.flash import protocol, slot
from llmtrain_trainer.flash.header import CHUNK, Edition, Fixed, Header
from llmtrain_trainer.flash.notices import Notice
from llmtrain_trainer.flash.planner import Entry
from llmtrain_trainer.flash.protocol import Pass, PeerGone
from llmtrain_trainer.flash.replicator import Circle, Replicator
from llmtrain_trainer.flash.server import Server
from llmtrain_trainer.flash.shards import PeerShard
from llmtrain_trainer.flash.store import Store

SIZE = 2 * CHUNK + 512
KEY = "the round's"
PATIENCE = 20.0


class Member:
    """A pod's store and its agent's server, in round 1."""

    def __init__(self, folder, name):
        self.store = Store(folder / name, "job")
        self.store.root.mkdir()
        self.keys = {1: KEY}
        self.server = Server(self.store, "127.0.0.1", self.keys.get)
        self.server.start()
        self.address = f"127.0.0.1:{self.server.port}"

    def snapshot(self, step, rank=0, number=1, fill=7):
        """One of its own, published."""
        room = self.store.own(0, step % 3)
        room.withdraw()
        room.reserve(SIZE)
        room.memory[:] = bytes([fill]) * SIZE
        fixed = Fixed("job", (Segment("w", "master", 0, SIZE // 4, "float32", 0),), {}, {})
        head = Header(Edition(step, number, 2), rank, fixed, {}, {"step": step}, {})
        return room.publish(head, headers.encode(head, fixed.encode()))


@pytest.fixture
def members(tmp_path):
    made = [Member(tmp_path, name) for name in "abc"]
    yield made
    for member in made:
        member.server.close()


def acknowledged(store, step):
    """Until the agent has said that this step is safe; its word."""
    done = threading.Event()
    for _ in range(int(PATIENCE / 0.02)):
        ack = store.ack(0)
        if ack and ack.step >= step:
            return ack
        done.wait(0.02)
    raise AssertionError("nobody made it safe")


def ask(replicator, held, number=1):
    replicator.tell(Notice(0, held.stem.name, number, held.header.edition.step))


def read(shard):
    into = bytearray(shard.size)
    shard.read_into(0, memoryview(into))
    return bytes(into)


def test_a_copy_is_the_same_and_proved(members):
    """Head, data and checksums; the own snapshot has its checksums then too."""
    first, second, _ = members
    replicator = Replicator(first.store, 0)
    replicator.assign(Circle(Pass(1, KEY), {second.address: 1}, 1))
    for step in range(1, 6):
        held = first.snapshot(step, fill=step)
        ask(replicator, held)
        assert acknowledged(first.store, step).kept_by == (1,)
        (copy,) = (each for each in second.store.scan()[0] if each.header.edition.step == step)
        assert copy.header == held.header
        assert copy.mark == held.mark
        assert slot.sums(copy) == slot.sums(held)
        assert slot.prove(copy) is not None
    # The one before is kept: it is what is committed until all members' copies of the next are there.
    assert sorted(each.header.edition.step for each in second.store.scan()[0]) == [3, 4, 5]


def test_a_dead_buddy_is_replaced_by_the_next(members):
    """The worker hears of the copy that there is; it is told how many."""
    first, second, third = members
    second.server.close()
    replicator = Replicator(first.store, 0)
    replicator.assign(Circle(Pass(1, KEY), {second.address: 1, third.address: 2}, 1))
    ask(replicator, first.snapshot(1))
    assert acknowledged(first.store, 1).kept_by == (2,)
    assert [each.header.edition.step for each in third.store.scan()[0]] == [1]


def test_two_copies_are_two_members(members):
    """With `replicas: 2` two may be lost."""
    first, second, third = members
    replicator = Replicator(first.store, 0)
    replicator.assign(Circle(Pass(1, KEY), {second.address: 1, third.address: 2}, 2))
    ask(replicator, first.snapshot(1))
    assert acknowledged(first.store, 1).kept_by == (1, 2)
    assert second.store.scan()[0][0].mark == third.store.scan()[0][0].mark


def test_without_buddies_a_snapshot_is_proved_at_home(members):
    """`replicas: 0`, or a member alone: it is as safe as it gets."""
    first, *_ = members
    replicator = Replicator(first.store, 0)
    replicator.assign(Circle(Pass(1, KEY), {}, 0))
    held = first.snapshot(1)
    ask(replicator, held)
    assert acknowledged(first.store, 1).kept_by == ()
    assert slot.sums(held) is not None


def test_a_buddy_without_room_is_no_buddy(members, monkeypatch):
    """The next one on the list takes the copy."""
    first, second, third = members
    reserve = slot.Slot.reserve

    def full(room, size):
        if room.stem.parent == second.store.root:
            raise slot.StoreFull(size)
        reserve(room, size)

    monkeypatch.setattr(slot.Slot, "reserve", full)
    replicator = Replicator(first.store, 0)
    replicator.assign(Circle(Pass(1, KEY), {second.address: 1, third.address: 2}, 1))
    ask(replicator, first.snapshot(1))
    assert acknowledged(first.store, 1).kept_by == (2,)
    assert second.store.scan()[0] == ()
    assert len(third.store.scan()[0]) == 1


@pytest.mark.parametrize(
    "by", [Pass(1, "guessed"), Pass(2, KEY), Pass(1, "")], ids=["another-key", "another-round", "no-key"]
)
def test_a_stranger_gets_nothing(members, by):
    """Neither a leftover of another round nor anyone who does not know the key."""
    first, *_ = members
    held = first.snapshot(1)
    with pytest.raises(PeerGone):
        PeerShard(first.address, by, Entry(held.header.edition, 0, held.stem.name, held.mark))


def test_a_member_of_an_old_round_can_leave_nothing(members):
    """It was admitted while its round lasted: what it sends after that is refused."""
    first, second, _ = members
    held = first.snapshot(1)
    with protocol.call(second.address, Pass(1, KEY)) as link:
        second.keys.clear()
        head = held.stem.with_suffix(slot.HEAD).read_bytes()
        protocol.send(link, {"do": "put", "head": len(head), "size": SIZE}, head)
        with pytest.raises((PeerGone, OSError)):
            protocol.receive(link)
    assert second.store.scan()[0] == ()


def test_a_snapshot_of_another_round_is_refused(members):
    """A worker that is late must not overwrite copies of the round that has gone on."""
    first, second, _ = members
    held = first.snapshot(1, number=7)
    with protocol.call(second.address, Pass(1, KEY)) as link:
        head = held.stem.with_suffix(slot.HEAD).read_bytes()
        protocol.send(link, {"do": "put", "head": len(head), "size": SIZE}, head)
        with pytest.raises(PeerGone):
            protocol.receive(link)


def test_a_shard_is_read_from_a_peer_and_proved(members):
    """Any range of it; damage in the peer's memory does not pass."""
    first, *_ = members
    held = first.snapshot(1, fill=9)
    entry = Entry(held.header.edition, 0, held.stem.name, held.mark)
    shard = PeerShard(first.address, Pass(1, KEY), entry)
    assert read(shard) == bytes([9]) * SIZE
    part = memoryview(bytearray(100))
    shard.read_into(CHUNK - 50, part)
    assert part == bytes([9]) * 100
    with held.stem.with_suffix(slot.DATA).open("r+b") as file:
        file.seek(CHUNK + 3)
        file.write(b"x")
    with pytest.raises(Damaged, match="chunk 2 of 3"):
        read(PeerShard(first.address, Pass(1, KEY), entry))


def test_a_peer_says_when_a_snapshot_is_gone(members):
    """It was overwritten since the inventory was taken; a path is no name of one."""
    first, *_ = members
    held = first.snapshot(1)
    with pytest.raises(Damaged, match="no longer there"):
        PeerShard(first.address, Pass(1, KEY), Entry(held.header.edition, 0, held.stem.name, "another"))
    with pytest.raises(Damaged, match="no longer there"):
        PeerShard(first.address, Pass(1, KEY), Entry(held.header.edition, 0, f"../a/{held.stem.name}", held.mark))


def test_a_copy_that_breaks_off_leaves_what_was_there(members):
    """The sender is killed in the midst of it; the next one finds the slot free."""
    first, second, _ = members
    replicator = Replicator(first.store, 0)
    replicator.assign(Circle(Pass(1, KEY), {second.address: 1}, 1))
    ask(replicator, first.snapshot(1))
    acknowledged(first.store, 1)
    held = first.snapshot(2)
    head = held.stem.with_suffix(slot.HEAD).read_bytes()
    with protocol.call(second.address, Pass(1, KEY)) as link:
        protocol.send(link, {"do": "put", "head": len(head), "size": SIZE}, head)
        assert protocol.receive(link)["ok"]
        link.sendall(b"x" * CHUNK)
    assert [each.header.edition.step for each in second.store.scan()[0]] == [1]
    ask(replicator, held)
    assert acknowledged(first.store, 2).kept_by == (1,)
    assert sorted(each.header.edition.step for each in second.store.scan()[0]) == [1, 2]


def put(link, held):
    """Begin to send; the answer."""
    head = held.stem.with_suffix(slot.HEAD).read_bytes()
    protocol.send(link, {"do": "put", "head": len(head), "size": SIZE}, head)
    return protocol.receive(link)


def with_two_copies(members):
    """The first member, and the second, which keeps its steps 1 and 2."""
    first, second, _ = members
    replicator = Replicator(first.store, 0)
    replicator.assign(Circle(Pass(1, KEY), {second.address: 1}, 1))
    for step in (1, 2):
        ask(replicator, first.snapshot(step))
        acknowledged(first.store, step)
    return first, second


def test_what_is_there_is_not_sent_again(members):
    """With `replicas: 2` and one buddy that fails the other is asked again and again: nothing makes room for a twin."""
    first, second = with_two_copies(members)
    with protocol.call(second.address, Pass(1, KEY)) as link:
        for _ in range(4):
            assert put(link, first.snapshot(2)) == {"ok": True, "there": True}
    assert sorted(each.header.edition.step for each in second.store.scan()[0]) == [1, 2]


def test_connections_that_hang_do_not_cost_what_is_committed(members):
    """One of the three slots is being filled by nobody: the next copy is refused, not put over the two newest."""
    first, second = with_two_copies(members)
    with protocol.call(second.address, Pass(1, KEY)) as hanging, protocol.call(second.address, Pass(1, KEY)) as link:
        held = first.snapshot(3)
        assert put(hanging, held)["ok"]
        assert not put(link, held)["ok"]
    assert sorted(each.header.edition.step for each in second.store.scan()[0]) == [1, 2]


def test_a_copy_that_comes_after_its_round_is_over_leaves_nothing(members):
    """Its workers have given the files of that round up already: nobody would do it again."""
    first, second, _ = members
    held = first.snapshot(1)
    with protocol.call(second.address, Pass(1, KEY)) as link:
        assert put(link, held)["ok"]
        second.store.drop_replicas(2, None)
        second.keys.clear()
        link.sendall(bytes([7]) * SIZE)
        protocol.send(link, {"chunks": slot.prove(held)})
        assert protocol.receive(link)["error"] == "the round is over"
    assert list(second.store.root.iterdir()) == []


def test_bytes_that_changed_on_the_way_are_not_published(members):
    """Checksums are taken on both sides; the sender is told."""
    first, second, _ = members
    held = first.snapshot(1)
    head = held.stem.with_suffix(slot.HEAD).read_bytes()
    with protocol.call(second.address, Pass(1, KEY)) as link:
        protocol.send(link, {"do": "put", "head": len(head), "size": SIZE}, head)
        assert protocol.receive(link)["ok"]
        link.sendall(b"x" * SIZE)
        protocol.send(link, {"chunks": slot.prove(held)})
        assert not protocol.receive(link)["ok"]
    assert second.store.scan()[0] == ()


def test_nonsense_on_the_port_does_no_harm(members):
    """A scanner, or something that speaks another protocol."""
    first, *_ = members
    host, _, port = first.address.rpartition(":")
    for garbage in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\x04\x00\x00\x00null", b"\xff" * 64):
        with socket.create_connection((host, int(port))) as link:
            link.sendall(garbage)
    held = first.snapshot(1)
    entry = Entry(held.header.edition, 0, held.stem.name, held.mark)
    assert len(read(PeerShard(first.address, Pass(1, KEY), entry))) == SIZE
