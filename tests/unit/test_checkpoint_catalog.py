"""Who owns a storage, what is committed there, and what is removed."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from llmtrain_operator.contract import names
from llmtrain_operator.contract.wire import Avoid, Void
from llmtrain_trainer.checkpoint import manifest as manifests
from llmtrain_trainer.checkpoint.catalog import Catalog, Fenced, shard_name, step_directory
from llmtrain_trainer.checkpoint.manifest import Manifest, NewerFormat
from llmtrain_trainer.checkpoint.storage import StorageError, open_storage
from llmtrain_trainer.checkpoint.stored import manifest_name
from tests.support.checkpoints import expected, restore, save, write_shards


@pytest.fixture
def storage(tmp_path):
    return open_storage(f"file://{tmp_path / 'checkpoints'}")


def stored(storage) -> set[str]:
    """All names in it."""
    top = storage.list()
    return {file.name for folder in ("", *top.directories) for file in storage.list(folder).files}


def test_a_save_is_there_and_a_save_without_commit_is_not(storage):
    """With the manifest the checkpoint exists."""
    catalog = Catalog(storage)
    fence = catalog.claim("a", 1)
    save(catalog, fence, 10)
    write_shards(storage, 20, fence, 2)
    found, skipped = Catalog(storage).newest_valid()
    assert (found.step, skipped) == (10, ())
    assert [(c.step, c.state) for c in catalog.checkpoints()] == [(20, "incomplete"), (10, "valid")]
    assert restore(storage) == expected(10, 2)


def test_an_empty_storage_has_nothing(storage):
    """Neither found nor skipped."""
    Catalog(storage).claim("a", 1)
    assert Catalog(storage).newest_valid() == (None, ())


def test_a_later_round_takes_over_and_the_earlier_one_commits_and_removes_nothing(storage):
    """What it wrote meanwhile stays beside the newer round's shards until they are swept."""
    old, new = Catalog(storage), Catalog(storage)
    first = old.claim("a", 1)
    second = new.claim("a", 2)
    assert second > first
    with pytest.raises(Fenced, match=r"claim 2 \(job a, round 2\)") as caught:
        save(old, first, 10)
    assert caught.value.reason == names.REASON_FENCED
    with pytest.raises(Fenced):
        old.prune(1, 10)
    save(new, second, 10, seed=2)
    assert restore(storage) == expected(10, 2, seed=2)
    assert shard_name(10, first, 0) in stored(storage)


def test_a_stale_round_cannot_claim(storage):
    """However late it comes."""
    Catalog(storage).claim("a", 5)
    with pytest.raises(Fenced, match="this is round 4"):
        Catalog(storage).claim("a", 4)


def test_a_new_job_takes_over_and_the_old_one_cannot_take_it_back(storage):
    """Two living jobs with one storage would else overwrite each other's progress for ever."""
    old, new = Catalog(storage), Catalog(storage)
    save(old, old.claim("a", 7), 10, job="a")
    fence = new.claim("b", 1)
    assert new.newest_valid()[0].step == 10
    with pytest.raises(Fenced):
        old.check()
    with pytest.raises(Fenced, match="give this job a storage of its own"):
        old.claim("a", 8)
    save(new, fence, 20, job="b")


def test_of_many_claimants_at_once_each_gets_its_own_number_and_one_owns_the_storage(storage):
    """Exclusive creation decides."""
    catalogs = [Catalog(storage) for _ in range(12)]
    with ThreadPoolExecutor(12) as pool:
        numbers = list(pool.map(lambda catalog: catalog.claim("a", 1), catalogs))
    assert len(set(numbers)) == 12

    def owns(catalog) -> bool:
        try:
            catalog.check()
        except Fenced:
            return False
        return True

    assert [owns(catalog) for catalog in catalogs].count(True) == 1


def test_a_claim_of_an_answer_that_was_lost_is_recognised(storage, monkeypatch):
    """The server made the file, but said that it exists: the same claimant asks again."""
    create = storage.create

    def made_but_said_otherwise(name, data) -> bool:
        create(name, data)
        return False

    monkeypatch.setattr(storage, "create", made_but_said_otherwise)
    assert Catalog(storage).claim("a", 1) == 1


def test_a_storage_that_contradicts_itself_ends_a_claim(storage, monkeypatch):
    """It says that the claim exists, and does not show it: an error that is told, not a loop."""
    monkeypatch.setattr(storage, "create", lambda *_: False)
    with pytest.raises(StorageError, match="can neither be created nor read"):
        Catalog(storage).claim("a", 1)


def test_a_storage_that_was_lost_and_made_again_is_still_owned(storage, tmp_path):
    """A bucket that vanished and came back empty: saving goes on, and a newer round still fences."""
    catalog = Catalog(storage)
    for round_number in (1, 2, 3):
        fence = catalog.claim("a", round_number)
    for file in (tmp_path / "checkpoints").iterdir():
        file.unlink()
    save(catalog, fence, 10)
    assert catalog.owner().number == fence == 3
    Catalog(storage).claim("a", 4)
    with pytest.raises(Fenced):
        catalog.check()


def test_a_step_that_is_saved_again_by_a_newer_round_replaces_the_earlier_one(storage):
    """After a restore from an older step, training comes by the same steps again."""
    catalog = Catalog(storage)
    save(catalog, catalog.claim("a", 1), 10, seed=1)
    save(catalog, catalog.claim("a", 2), 10, world_size=3, seed=2)
    assert restore(storage) == expected(10, 3, seed=2)


def test_the_same_commit_twice_is_one(storage):
    """A retry after an answer that was lost."""
    catalog = Catalog(storage)
    written = save(catalog, catalog.claim("a", 1), 10)
    catalog.commit(written)
    assert catalog.newest_valid()[0] == written


def test_a_commit_that_lost_the_race_does_not_replace_a_newer_claims(storage):
    """The fences looked good a moment ago: the manifest that is there decides."""
    old, new = Catalog(storage), Catalog(storage)
    first = old.claim("a", 1)
    shards = write_shards(storage, 10, first, 2)
    owner = old.owner()
    save(new, new.claim("a", 2), 10, seed=2)
    old.owner = lambda: owner
    with pytest.raises(Fenced, match="a newer claim has committed step 10"):
        old.commit(Manifest(10, first, "a", 1, 2, 0.0, shards, {}))
    assert restore(storage) == expected(10, 2, seed=2)


def test_a_commit_needs_a_claim_of_the_same_fence(storage):
    """A mistake in the caller, not a fenced round."""
    catalog = Catalog(storage)
    shards = write_shards_after_prepare(storage)
    with pytest.raises(ValueError, match="claimed first"):
        catalog.commit(Manifest(10, 1, "a", 1, 2, 0.0, shards, {}))
    catalog.claim("a", 1)
    with pytest.raises(ValueError, match="fence 9"):
        catalog.commit(Manifest(10, 9, "a", 1, 2, 0.0, shards, {}))


def write_shards_after_prepare(storage):
    storage.prepare()
    return write_shards(storage, 10, 1, 2)


@pytest.mark.parametrize("keep", [1, 2, 3, 5])
def test_prune_keeps_the_newest(storage, keep):
    """Whole directories go, also their manifests."""
    catalog = Catalog(storage)
    fence = catalog.claim("a", 1)
    for step in (10, 20, 30, 40):
        save(catalog, fence, step)
    removed = catalog.prune(keep, 40)
    left = [40, 30, 20, 10][:keep]
    assert [c.step for c in catalog.checkpoints()] == left
    assert set(storage.list().directories) == {step_directory(step) for step in left}
    assert removed == tuple(step_directory(step) for step in (40, 30, 20, 10)[keep:])
    assert catalog.prune(keep, 40) == ()
    assert restore(storage) == expected(40, 2)


def test_a_removal_that_is_cut_short_leaves_no_manifest_without_shards(storage, monkeypatch):
    """What is left counts as never committed, not as damaged."""
    catalog = Catalog(storage)
    fence = catalog.claim("a", 1)
    for step in (10, 20):
        save(catalog, fence, step)
    delete, calls = storage.delete, []

    def once(names) -> None:
        calls.append(names)
        if len(calls) > 1:
            raise KeyboardInterrupt
        delete(names)

    monkeypatch.setattr(storage, "delete", once)
    with pytest.raises(KeyboardInterrupt):
        catalog.prune(1, 20)
    assert [(c.step, c.state) for c in catalog.checkpoints()] == [(20, "valid"), (10, "incomplete")]
    monkeypatch.undo()
    catalog.prune(1, 20)
    assert storage.list().directories == (step_directory(20),)


def test_prune_never_counts_a_damaged_checkpoint_as_kept(storage, tmp_path):
    """With keep 1 and a damaged newest one, the valid one before it stays; so does the damaged one, for its owner."""
    catalog = Catalog(storage)
    fence = catalog.claim("a", 1)
    for step in (10, 20, 30):
        save(catalog, fence, step)
    (tmp_path / "checkpoints" / shard_name(30, fence, 1)).unlink()
    catalog.prune(1, 30)
    assert [(c.step, c.state) for c in catalog.checkpoints()] == [(30, "damaged"), (20, "valid")]
    save(catalog, fence, 40)
    catalog.prune(1, 40)
    assert [c.step for c in catalog.checkpoints()] == [40]


def test_prune_never_counts_what_this_round_began_before(storage, tmp_path):
    """A restore found the data of the newest damaged and fell back; by its manifest it still looks valid."""
    catalog = Catalog(storage)
    fence = catalog.claim("a", 1)
    for step in (10, 20):
        save(catalog, fence, step)
    shard = tmp_path / "checkpoints" / shard_name(20, fence, 1)
    shard.write_bytes(b"\xff" + shard.read_bytes()[1:])
    later = Catalog(storage)
    assert restore(storage).step == 10
    save(later, later.claim("a", 2), 15)
    later.prune(1, 15)
    assert [(c.step, c.state) for c in later.checkpoints()] == [(20, "valid"), (15, "valid")]
    assert restore(storage).step == 15


def test_prune_removes_what_given_up_saves_have_left(storage, tmp_path):
    """Of earlier rounds all of it, of this round what is older than its newest commit; a save under way stays."""
    root = tmp_path / "checkpoints"
    old = Catalog(storage)
    first = old.claim("a", 1)
    save(old, first, 10)
    write_shards(storage, 20, first, 3)
    write_shards(storage, 50, first, 3)
    (root / f"{shard_name(50, first, 0)}.0a1b.partial").write_bytes(b"cut short")
    (root / step_directory(20) / "notes.txt").write_text("mine")
    catalog = Catalog(storage)
    fence = catalog.claim("a", 2)
    write_shards(storage, 15, fence, 2)
    save(catalog, fence, 20)
    write_shards(storage, 30, fence, 2)
    catalog.prune(3, 20)
    shards = {shard_name(step, fence, rank) for step in (20, 30) for rank in (0, 1)}
    committed = {manifest_name(10), manifest_name(20), shard_name(10, first, 0), shard_name(10, first, 1)}
    notes = {f"{step_directory(20)}/notes.txt"}
    assert stored(storage) == shards | committed | notes | {"fence-00000001.json", "fence-00000002.json"}


def test_prune_forgets_old_claims_but_not_who_was_followed(storage):
    """A job that lost the storage a hundred rounds ago still cannot have it back."""
    Catalog(storage).claim("a", 1)
    catalog = Catalog(storage)
    for round_number in range(20):
        catalog.claim("b", round_number)
    catalog.prune(1, 0)
    assert sum(name.startswith("fence-") for name in stored(storage)) == 8
    with pytest.raises(Fenced):
        Catalog(storage).claim("a", 2)
    assert Catalog(storage).claim("b", 20) == 22


def test_discard_removes_a_failed_save_and_nothing_that_is_committed(storage):
    """Only what this claim wrote."""
    old, catalog = Catalog(storage), Catalog(storage)
    first = old.claim("a", 1)
    write_shards(storage, 20, first, 1)
    fence = catalog.claim("a", 2)
    save(catalog, fence, 10)
    write_shards(storage, 20, fence, 2)
    for step in (10, 20, 30):
        catalog.discard(step)
    assert restore(storage) == expected(10, 2)
    assert {file.name for file in storage.list(step_directory(20)).files} == {shard_name(20, first, 0)}


def test_a_checkpoint_of_a_newer_format_ends_the_search_and_is_never_removed(storage):
    """Going on from an older one would silently lose what a newer version has saved."""
    catalog = Catalog(storage)
    fence = catalog.claim("a", 1)
    for step in (10, 20, 30):
        save(catalog, fence, step)
    content = json.loads(storage.read(manifest_name(10)))["content"] | {"formatVersion": manifests.FORMAT + 1}
    data = manifests.seal(content)
    storage.write(manifest_name(10), [memoryview(data)], len(data))
    assert catalog.newest_valid()[0].step == 30
    with pytest.raises(NewerFormat, match="step-000000000010"):
        catalog.newest_valid(below=20)
    catalog.prune(1, 30)
    assert [(c.step, c.state) for c in catalog.checkpoints()] == [(30, "valid"), (10, "newer")]


def test_what_was_rolled_back_from_is_passed_over_and_removed_by_the_next_save(storage):
    """Of the round that went wrong; a later one may come past the same steps. By others it is taken for what it is."""
    first = Catalog(storage)
    fence = first.claim("a", 1)
    for step in (10, 20, 30):
        save(first, fence, step)
    avoid = Avoid(void=(Void(10, 1),))
    later = Catalog(storage, avoid)
    assert later.newest_valid()[0].step == 10
    assert Catalog(storage).newest_valid()[0].step == 30
    save(later, later.claim("a", 2), 15, number=2)
    assert later.newest_valid()[0].step == 15
    assert later.prune(3, 15) == (step_directory(30), step_directory(20))
    assert [one.step for one in later.checkpoints()] == [15, 10]


def test_with_nothing_else_left_it_is_told_that_it_was_rolled_back_from(storage):
    """A job that finds only that must not begin anew."""
    catalog = Catalog(storage, Avoid(void=(Void(5, 1),)))
    save(catalog, catalog.claim("a", 1), 10)
    assert catalog.newest_valid() == (None, (f"{manifest_name(10)}: training was rolled back from it",))
