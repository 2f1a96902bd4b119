"""Frozen weights: written once a round, in every checkpoint all the same, and removed when none needs them."""

import dataclasses
import shutil

import pytest
import torch

from llmtrain_trainer.checkpoint import filling, manifest, proof
from llmtrain_trainer.checkpoint.catalog import Catalog
from llmtrain_trainer.checkpoint.increments import frozen_from
from llmtrain_trainer.checkpoint.layout import Segment, place
from llmtrain_trainer.checkpoint.manifest import Manifest, NewerFormat
from llmtrain_trainer.checkpoint.pieces import WEIGHTS, Piece
from llmtrain_trainer.checkpoint.shardfile import ShardReader, write_shard
from llmtrain_trainer.checkpoint.storage import open_storage
from llmtrain_trainer.checkpoint.tool import main
from llmtrain_trainer.flash import planner
from llmtrain_trainer.flash.header import Edition
from llmtrain_trainer.flash.protocol import Pass
from llmtrain_trainer.flash.sources import Backing, BadSource, Sources
from llmtrain_trainer.flash.survey import survey
from tests.support import flash_stores
from tests.support.savers import save, two_ranks

FROZEN = 2**18 + 1
"""Numbers of each rank: a mebibyte and four bytes."""


def files(path):
    return sorted(file.name for file in (path / "frozen").iterdir()) if (path / "frozen").exists() else []


def restored(path, step=None):
    """(trained, frozen) of all ranks, every byte proved."""
    storage = open_storage(f"file://{path}")
    found = Catalog(storage).newest_valid()[0] if step is None else Catalog(storage).checkpoint(step).manifest
    trained, frozen = torch.zeros(20), torch.zeros(2 * FROZEN)
    pieces = [Piece("weight", "master", 0, trained), Piece("backbone", WEIGHTS, 0, frozen)]
    filling.fill([lambda part=part: ShardReader(storage, part) for part in found.parts], pieces)
    return trained, frozen


def committed(ranks, step):
    assert [outcome.committed for outcome in save(ranks, step)] == [True, True], ranks[0].outcomes


def test_what_did_not_change_is_written_once_and_is_in_every_checkpoint(tmp_path):
    """The second save writes only what moved; both can be read whole, and either alone is found good."""
    ranks = two_ranks(tmp_path, frozen=FROZEN)
    committed(ranks, 1)
    assert len(files(tmp_path)) == 2
    for rank in ranks:
        rank.state += 1
    committed(ranks, 2)
    assert all("step-000000000001" in name for name in files(tmp_path))
    assert sum(file.stat().st_size for file in (tmp_path / "step-000000000002").iterdir()) < 10_000
    storage = open_storage(f"file://{tmp_path}")
    for step, moved in ((1, 0), (2, 1)):
        trained, frozen = restored(tmp_path, step)
        assert torch.equal(trained, torch.cat([torch.arange(10.0), torch.arange(100.0, 110.0)]) + moved)
        assert torch.equal(frozen, torch.cat([rank.frozen for rank in ranks]))
        assert proof.damage(storage, Catalog(storage).checkpoint(step)) == ()


def test_frozen_weights_that_somebody_changed_are_written_anew(tmp_path):
    """An average of the weights is no parameter that an optimizer updates, and still changes: bytes decide."""
    ranks = two_ranks(tmp_path, frozen=FROZEN)
    committed(ranks, 1)
    ranks[1].frozen[-1] += 1
    committed(ranks, 2)
    assert [name.partition("-step-")[2] for name in files(tmp_path)] == [f"{step:012d}.bin" for step in (1, 1, 2)]
    assert restored(tmp_path)[1][-1] == ranks[1].frozen[-1]


def test_a_round_shares_nothing_with_the_one_before(tmp_path):
    """Else one file's damage would spoil all that is kept; when the old ones go their frozen parts go with them."""
    committed(two_ranks(tmp_path, frozen=FROZEN), 1)
    ranks = two_ranks(tmp_path, round_number=2, frozen=FROZEN)
    committed(ranks, 2)
    assert len(files(tmp_path)) == 4
    committed(ranks, 3)  # keep is 2: step 1 goes
    assert {name.partition("-step-")[2] for name in files(tmp_path)} == {"000000000002.bin"}
    assert restored(tmp_path)[0][0] == 0


def test_what_old_checkpoints_alone_do_not_need_stays_when_they_are_pruned(tmp_path):
    """The file of step 1 outlives its step."""
    ranks = two_ranks(tmp_path, frozen=FROZEN)
    for step in (1, 2, 3, 4):
        committed(ranks, step)
    assert [checkpoint.step for checkpoint in ranks[0].catalog.checkpoints()] == [4, 3]
    assert all("step-000000000001" in name for name in files(tmp_path))
    restored(tmp_path)


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_damage_to_a_shared_file_is_told_by_name(tmp_path, damage):
    """Missing or short: every checkpoint that names it is passed over; a flipped bit: `verify` and the restore tell."""
    ranks = two_ranks(tmp_path, frozen=FROZEN)
    committed(ranks, 1)
    committed(ranks, 2)
    file = tmp_path / "frozen" / files(tmp_path)[0]
    content = bytearray(file.read_bytes())
    if damage == "gone":
        file.unlink()
    else:
        content[1000] ^= 1
        file.write_bytes(content if damage == "flip" else content[:-1])
    assert main(["verify", f"file://{tmp_path}"]) == 1
    storage = open_storage(f"file://{tmp_path}")
    wrong = proof.damage(storage, Catalog(storage).checkpoint(2))
    assert {one.name for one in wrong} == {f"frozen/{file.name}"}
    found, skipped = Catalog(storage).newest_valid()
    if damage == "flip":
        with pytest.raises(manifest.Damaged, match=file.name):
            restored(tmp_path)
    else:
        assert found is None
        assert len(skipped) == 2


def test_a_shared_file_that_is_lost_is_written_again(tmp_path):
    """The save that would have named it fails and says so, the next one writes everything."""
    ranks = two_ranks(tmp_path, frozen=FROZEN)
    committed(ranks, 1)
    shutil.rmtree(tmp_path / "frozen")
    assert {(one.committed, one.reason) for one in save(ranks, 2)} == {(False, "StorageMissing")}
    committed(ranks, 3)
    restored(tmp_path)


def test_what_a_failed_save_wrote_goes(tmp_path):
    """By itself, or by the next round's first save if it was killed."""
    ranks = two_ranks(tmp_path, frozen=FROZEN)
    good = ranks[1].catalog.storage
    ranks[1].catalog.storage = open_storage(f"file://{tmp_path}/not/there")
    assert {one.committed for one in save(ranks, 1)} == {False}
    assert files(tmp_path) == []
    ranks[1].catalog.storage = good
    left = "shard-00000001-00001-step-000000000007.bin"
    (tmp_path / "frozen").mkdir(exist_ok=True)
    (tmp_path / "frozen" / left).write_bytes(b"killed")
    (tmp_path / "frozen" / f"{left}.0123abcd.partial").write_bytes(b"killed")
    committed(two_ranks(tmp_path, round_number=2, frozen=FROZEN), 2)
    assert len(files(tmp_path)) == 2
    assert left not in files(tmp_path)


def test_removing_a_checkpoint_removes_what_it_alone_named(tmp_path):
    """But for what a living round may name again; nothing is left of all of them but the claims."""
    ranks = two_ranks(tmp_path, frozen=FROZEN)
    committed(ranks, 1)
    ranks[0].frozen += 1
    committed(ranks, 2)
    assert len(files(tmp_path)) == 3
    assert main(["rm", f"file://{tmp_path}", "--step", "2"]) == 0
    assert len(files(tmp_path)) == 3, "the round that wrote it may be about to name it again"
    later = two_ranks(tmp_path, round_number=2, frozen=FROZEN)
    committed(later, 3)
    assert [name.partition("-step-")[2] for name in files(tmp_path)] == ["000000000001.bin"] * 2 + [
        "000000000003.bin"
    ] * 2
    assert main(["rm", f"file://{tmp_path}", "--step", "3"]) == 0
    restored(tmp_path)
    assert main(["rm", f"file://{tmp_path}", "--step", "1", "--force"]) == 0
    assert {path.name.partition("-")[0] for path in tmp_path.iterdir()} == {"fence"}


def test_nothing_is_removed_as_long_as_a_manifest_cannot_be_read(tmp_path):
    """It may name anything."""
    ranks = two_ranks(tmp_path, frozen=FROZEN)
    for step in (1, 2):
        committed(ranks, step)
        ranks[0].frozen += 1
    damaged = tmp_path / "step-000000000002" / "manifest.json"
    content = damaged.read_bytes()
    damaged.write_bytes(b"{")
    committed(ranks, 3)
    assert len(files(tmp_path)) == 4
    damaged.write_bytes(content)
    assert restored(tmp_path, 2)[1][0] == 1


def test_only_checkpoints_that_share_are_of_the_later_format(tmp_path, monkeypatch):
    """So an earlier version reads all others, and says of these which version it needs."""
    committed(two_ranks(tmp_path / "plain"), 1)
    committed(two_ranks(tmp_path / "shared", frozen=FROZEN), 1)
    monkeypatch.setattr(manifest, "FORMAT", 1)
    assert Catalog(open_storage(f"file://{tmp_path}/plain")).newest_valid()[0] is not None
    with pytest.raises(NewerFormat, match="has format 2"):
        Catalog(open_storage(f"file://{tmp_path}/shared")).newest_valid()


def test_frozen_weights_get_a_file_only_where_it_pays():
    """And only where they are the end of the data, as every state lays them out."""
    trained = Segment("a", "master", 0, 1000, "float32")
    frozen = Segment("b", WEIGHTS, 0, FROZEN, "float32")
    assert frozen_from(place([trained, frozen])) == 4032
    assert frozen_from(place([frozen])) == 0
    assert frozen_from(place([trained])) is None
    assert frozen_from(place([frozen, trained])) is None
    assert frozen_from(place([trained, Segment("b", WEIGHTS, 0, FROZEN - 2, "float32")])) is None


def test_a_shard_that_memory_lost_comes_from_storage_in_both_its_parts(tmp_path):
    """The other rank's is whole in memory, as snapshots are."""
    edition, kept = Edition(5, 1, 2), flash_stores.store_in(tmp_path / "memory")
    held = flash_stores.fill(kept.own(0, 0), edition, 0)
    storage = open_storage(f"file://{tmp_path}")
    segments, data = flash_stores.header(edition, 1).fixed.segments, memoryview(flash_stores.content(edition, 1))
    cut = segments[2].offset
    first = write_shard(storage, "step-000000000005/a", segments[:2], data[:cut], {"rng": {}})
    moved = [dataclasses.replace(each, offset=each.offset - cut) for each in segments[2:]]
    entry = dataclasses.replace(first, frozen=write_shard(storage, "frozen/b", moved, data[cut:], {}))
    stored = Manifest(5, 1, "job", 1, 2, 0.0, (entry, entry), {})
    found = planner.newest([survey(kept, 0)], 0, durable=edition)
    assert found is not None
    assert [locations[0].member for locations in found[1]] == [0, None]
    sources = Sources(found[1], kept, 0, Pass(1, "key"), Backing(storage, stored))
    wanted = flash_stores.numbers(edition)
    pieces = [Piece(*key, 0, torch.zeros(len(values))) for key, values in wanted.items()]
    sources.fill(pieces, 0)
    assert all(torch.equal(piece.tensor, torch.from_numpy(wanted[piece.parameter, piece.kind])) for piece in pieces)
    held.stem.with_suffix(".data").unlink()
    with pytest.raises(BadSource, match="own-0-0"):
        Sources(found[1], kept, 0, Pass(1, "key"), Backing(storage, stored)).fill(pieces, 0)
