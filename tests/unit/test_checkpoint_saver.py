"""Saves of two ranks: what is stored, and what becomes of a save that fails."""

import json

import pytest
import torch

from llmtrain_operator.contract import names
from llmtrain_trainer.checkpoint.catalog import Catalog, Fenced, shard_name
from llmtrain_trainer.checkpoint.pieces import Piece
from llmtrain_trainer.checkpoint.shardfile import ShardReader, write_shard
from llmtrain_trainer.checkpoint.storage import StorageError, open_storage
from llmtrain_trainer.checkpoint.storage.files import FileStorage
from tests.support.savers import save, two_ranks

PATIENCE = 0.5


def stored(path):
    """Parameter values of the newest valid checkpoint, by rank, and its manifest."""
    storage = open_storage(f"file://{path}")
    manifest, skipped = Catalog(storage).newest_valid()
    assert skipped == ()
    values = []
    for shard in manifest.shards if manifest else ():
        reader = ShardReader(storage, shard)
        data = torch.empty(reader.size, dtype=torch.uint8)
        reader.read_into(0, memoryview(data.numpy()))
        values.append(data[:40].view(torch.float32).tolist())
        assert reader.extras["rng"]["torch"] == f"rng-{len(values) - 1}"
    return manifest, values


def test_what_was_live_at_the_boundary_is_what_is_stored(tmp_path):
    """Training changes the state as soon as `begin` has returned; every rank hears of the commit."""
    first, second = two_ranks(tmp_path / "c")
    first.begin(7)
    first.state.zero_()
    assert first.saver.busy  # it waits for the other rank's shard
    assert first.saver.take() is None
    second.begin(7)
    second.state.zero_()
    outcome = first.end()
    assert second.end() == outcome
    assert outcome.committed
    manifest, values = stored(tmp_path / "c")
    assert (manifest.step, manifest.world_size, manifest.size) == (7, 2, outcome.size)
    assert manifest.state == {"step": 7}
    assert values == [list(map(float, range(10))), list(map(float, range(100, 110)))]
    assert first.saver.take() is None


def test_a_second_copy_does_not_start_over_the_first(tmp_path):
    """There is one buffer: the caller has to look first."""
    first, second = two_ranks(tmp_path / "c")
    first.begin(1)
    with pytest.raises(AssertionError, match="still being written"):
        first.begin(2)
    second.begin(1)
    assert first.end().committed


def test_old_checkpoints_go_and_notes_are_forgotten(tmp_path):
    """`keep` of them stay; the round's store does not grow with the number of saves."""
    ranks = two_ranks(tmp_path / "c")
    for step in (10, 20, 30):
        assert all(outcome.committed for outcome in save(ranks, step))
    assert [checkpoint.step for checkpoint in ranks[0].catalog.checkpoints()] == [30, 20]
    store = ranks[0].saver._accord._store
    assert not any(store.check([key]) for n in (1, 2) for key in (f"{n}/fence", f"{n}/shard/1", f"{n}/outcome"))


@pytest.mark.parametrize("broken", [0, 1])
def test_a_rank_that_cannot_write_fails_the_save_for_all(tmp_path, broken):
    """Nothing is committed; when the cause is gone the next save works, and nothing of the failed one is left."""
    ranks = two_ranks(tmp_path / "c")
    assert all(outcome.committed for outcome in save(ranks, 1))
    (tmp_path / "elsewhere").mkdir()
    good = ranks[broken].catalog.storage
    ranks[broken].catalog.storage = open_storage(f"file://{tmp_path}/elsewhere/gone")
    outcomes = save(ranks, 2)
    assert outcomes[0] == outcomes[1]
    assert (outcomes[0].committed, outcomes[0].reason) == (False, "StorageMissing")
    assert "elsewhere/gone" in outcomes[0].message
    assert stored(tmp_path / "c")[0].step == 1
    ranks[broken].catalog.storage = good
    assert all(outcome.committed for outcome in save(ranks, 3))
    assert [checkpoint.step for checkpoint in ranks[0].catalog.checkpoints()] == [3, 1]


def test_members_that_write_to_different_places_are_told(tmp_path):
    """A path of the node's own under the same URI: what only one member can see must not pass for a checkpoint."""
    ranks = two_ranks(tmp_path / "c")
    (tmp_path / "elsewhere").mkdir()
    ranks[1].catalog.storage = open_storage(f"file://{tmp_path}/elsewhere")
    outcomes = save(ranks, 1)
    assert {(outcome.committed, outcome.reason) for outcome in outcomes} == {(False, "StorageMissing")}
    assert "one place for all members" in outcomes[0].message
    assert stored(tmp_path / "c")[0] is None


def test_a_claim_that_could_not_be_made_is_made_by_the_save(tmp_path):
    """A round may begin while its storage is away."""
    ranks = two_ranks(tmp_path / "not-there" / "c")
    with pytest.raises(StorageError):
        ranks[0].saver.claim()
    assert {outcome.reason for outcome in save(ranks, 1)} == {"StorageMissing"}
    (tmp_path / "not-there").mkdir()
    assert all(outcome.committed for outcome in save(ranks, 2))


@pytest.mark.parametrize("alive", [0, 1])
def test_a_rank_whose_peer_died_does_not_wait_for_ever(tmp_path, alive):
    """And what it wrote is no checkpoint."""
    ranks = two_ranks(tmp_path / "c", patience=PATIENCE)
    ranks[0].saver.claim()
    ranks[alive].begin(5)
    outcome = ranks[alive].end()
    assert not outcome.committed
    assert ("the shard of rank 1 did not come", "rank 0 did not begin")[alive] in outcome.message
    assert stored(tmp_path / "c")[0] is None


def test_a_leftover_of_an_older_round_commits_nothing(tmp_path):
    """All of its ranks learn that they are fenced; what the newer round has saved stays the newest."""
    old = two_ranks(tmp_path / "c", round_number=1)
    assert all(outcome.committed for outcome in save(old, 1))
    new = two_ranks(tmp_path / "c", round_number=2)
    assert all(outcome.committed for outcome in save(new, 2))
    assert {outcome.reason for outcome in save(old, 3)} == {"Fenced"}
    assert stored(tmp_path / "c")[0].step == 2
    with pytest.raises(Fenced):
        two_ranks(tmp_path / "c", round_number=1)[0].saver.claim()


def test_what_a_killed_save_left_makes_room_for_the_next_rounds_first(tmp_path, monkeypatch):
    """On a storage that is full because of it no later save would ever be committed, and only a commit prunes."""
    old = two_ranks(tmp_path / "c", round_number=1)
    assert all(outcome.committed for outcome in save(old, 1))
    left = shard_name(3, old[0].saver.fence, 1)
    write_shard(old[1].catalog.storage, left, (), memoryview(b"killed"), {})
    partial = tmp_path / "c" / f"{left}.0123abcd.partial"
    partial.write_bytes(b"half of it")
    new = two_ranks(tmp_path / "c", round_number=2)
    write = FileStorage.write

    def on_a_full_disk(self, name, parts, size):
        if (tmp_path / "c" / left).exists() or partial.exists():
            raise StorageError(names.REASON_STORAGE_FULL, "no room")
        write(self, name, parts, size)

    monkeypatch.setattr(FileStorage, "write", on_a_full_disk)
    assert all(outcome.committed for outcome in save(new, 2))
    assert [checkpoint.step for checkpoint in new[0].catalog.checkpoints()] == [2, 1]


def test_storage_that_lets_nothing_be_deleted_still_takes_checkpoints(tmp_path, monkeypatch):
    """It is tried again with the next save."""
    ranks = two_ranks(tmp_path / "c")
    asked = []

    def refuse(self):
        asked.append(1)
        raise StorageError(names.REASON_STORAGE_DENIED, "no right to delete")

    monkeypatch.setattr(Catalog, "clear", refuse)
    assert all(outcome.committed for step in (1, 2) for outcome in save(ranks, step))
    assert len(asked) == 2


@pytest.mark.parametrize("faulty", [0, 1])
def test_our_own_faults_are_failed_saves_that_nobody_waits_for(tmp_path, faulty):
    """No crash in training, and no patience of minutes on the other rank: the fault is told."""
    ranks = two_ranks(tmp_path / "c", patience=600.0)
    pieces = [Piece("weight", "master", 0, torch.zeros(4))]
    ranks[1 - faulty].begin(1)
    ranks[faulty].saver.begin(1, pieces, {"torch": object()}, {"loss": object()})  # neither is JSON
    for rank in ranks:
        rank.saver._thread.join(20)
        assert not rank.saver.busy
    assert [rank.end().committed for rank in ranks] == [False, False]
    assert all("the checkpoint failed: TypeError" in rank.outcomes[0].message for rank in ranks)
    assert json.dumps(ranks[0].outcomes[0].message)
    assert all(outcome.committed for outcome in save(ranks, 2))
