"""`python -m llmtrain_trainer.flash`: what it prints, how it exits, and what it leaves in storage."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from llmtrain_operator.contract import names
from llmtrain_trainer.checkpoint import proof
from llmtrain_trainer.checkpoint.catalog import Catalog
from llmtrain_trainer.checkpoint.layout import CHUNK, Segment, plan_reads
from llmtrain_trainer.checkpoint.shardfile import ShardReader
from llmtrain_trainer.checkpoint.storage import open_storage
from llmtrain_trainer.flash import persist, slot
from llmtrain_trainer.flash.header import Edition
from llmtrain_trainer.flash.persist import Claimant, Memory, lacking, persist_newest
from llmtrain_trainer.flash.planner import Entry, Inventory
from llmtrain_trainer.flash.protocol import Pass
from llmtrain_trainer.flash.server import Server
from llmtrain_trainer.flash.slot import Slot
from llmtrain_trainer.flash.survey import survey
from llmtrain_trainer.flash.tool import main
from tests.support import flash_stores
from tests.support.flash_stores import JOB, content, fill, rng, spoil, store_in, training

OLD, NEW = Edition(10, 3, 2), Edition(20, 3, 2)


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """That of no pod."""
    for name in (names.ENV_FLASH, names.ENV_JOB_UID, names.ENV_ROUND, names.ENV_FLASH_KEY):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def store(tmp_path):
    """A pod's of two: step 10 of both ranks, step 20 of its own rank only, not yet proved."""
    store = store_in(tmp_path / "memory")
    fill(store.own(0, 0), OLD, 0)
    fill(store.replica(OLD, 1, 0), OLD, 1)
    fill(store.own(0, 1), NEW, 0, proved=False)
    return store


@pytest.fixture
def storage(tmp_path):
    return open_storage(f"file://{tmp_path}/durable")


def run(*arguments) -> int:
    return main([str(argument) for argument in arguments])


def told(capsys):
    return json.loads(capsys.readouterr().out)


def check(storage, edition, job=JOB):
    """The newest checkpoint is this edition, and says and holds what a saver would have written."""
    manifest, skipped = Catalog(storage).newest_valid()
    assert (manifest.step, manifest.round, manifest.world_size, skipped) == (*astuple(edition), ())
    assert manifest.job_uid == job
    assert manifest.state == {
        "engine": {"groups": 1, "lr": 0.5},
        "training": training(edition.step),
        "model": {"config": {"layers": 2}},
    }
    assert proof.damage(storage, Catalog(storage).checkpoint(edition.step)) == ()
    readers = [ShardReader(storage, entry) for entry in manifest.shards]
    for rank, reader in enumerate(readers):
        room = bytearray(reader.size)
        reader.read_into(0, memoryview(room))
        assert bytes(room) == content(edition, rank)
        assert reader.extras == {"rng": rng(edition.step, rank)}
    wanted = [Segment(*key, 0, len(values), "float32") for key, values in flash_stores.numbers(edition).items()]
    assert plan_reads(wanted, [reader.segments for reader in readers], CHUNK)
    return manifest


def astuple(edition):
    return edition.step, edition.round, edition.world_size


# ls


def test_ls_shows_each_snapshot_the_newest_first(store, capsys):
    """Its step, round, rank, whose it is, and whether there are checksums."""
    assert run("ls", store.root) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        ["STEP", "ROUND", "RANK", "KIND", "MB", "STATE"],
        ["20", "3", "0/2", "own", "1.6", "unproved"],
        ["10", "3", "0/2", "own", "1.6", "proved"],
        ["10", "3", "1/2", "replica", "1.6", "proved"],
    ]


def test_ls_tells_what_is_damaged_and_why(store, capsys):
    """Data that ends early, a head that is not what was written, checksums that are not."""
    (store.root / "own-0-0.sums").write_bytes(b"x\n{}")
    head = store.root / "own-0-1.head"
    head.write_bytes(head.read_bytes()[:-1])
    with (store.root / "replica-3-1-0.data").open("r+b") as file:
        file.truncate(1000)
    assert run("ls", store.root, "--json") == 0
    found = told(capsys)
    assert (found["jobUid"], found["durable"]) == (JOB, -1)
    assert {one["file"]: one["why"].split(" ")[0] for one in found["damaged"]} == {
        "own-0-1": "the",
        "replica-3-1-0": "its",
    }
    [facts] = found["snapshots"]
    assert facts["state"] == "damaged"
    assert "checksums" in facts["why"]


def test_the_environment_names_store_and_job(store, monkeypatch, capsys):
    """As in a pod; what another job left is not shown."""
    monkeypatch.setenv(names.ENV_FLASH, str(store.root))
    monkeypatch.setenv(names.ENV_JOB_UID, "uid-b")
    assert run("ls", "--json") == 0
    assert told(capsys)["snapshots"] == []


@pytest.mark.parametrize("command", [["ls"], ["verify"], ["rm", "--step", 1], ["export", "--uri", "file:///x"]])
def test_a_store_that_is_not_there_is_told_on_standard_error(command, tmp_path, capsys):
    """Exit code 2, and no traceback; the same where nothing names a store."""
    assert run(*command) == 2
    assert names.ENV_FLASH in capsys.readouterr().err
    assert run(command[0], tmp_path / "gone", *command[1:]) == 2
    assert "is no directory" in capsys.readouterr().err


def test_snapshots_of_two_jobs_are_not_mixed(store, capsys):
    """Whose is asked for, unless the environment says it."""
    fill(store.own(1, 0), OLD, 1, job_uid="uid-b")
    assert run("ls", store.root) == 2
    assert "uid-a, uid-b" in capsys.readouterr().err


# verify


def test_verify_proves_every_byte_and_claims_no_more(store, capsys):
    """A snapshot without checksums is said to be unproved, and none are made up for it."""
    assert run("verify", store.root) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "step 20 of rank 0 (own, round 3): unproved: complete by its head, and nobody has computed checksums yet",
        "step 10 of rank 0 (own, round 3): valid",
        "step 10 of rank 1 (replica, round 3): valid",
    ]
    assert not (store.root / "own-0-1.sums").exists()


def test_verify_names_each_chunk_that_is_damaged(store, capsys):
    """Exit code 1; of another step that is asked for it says that it is well."""
    [held] = [each for each in store.scan()[0] if each.stem.name == "own-0-0"]
    spoil(held, 5)
    spoil(held, 2**20 + 5)
    assert run("verify", store.root, "--json") == 1
    states = {(one["step"], one["rank"]): (one["state"], one["why"]) for one in told(capsys)["snapshots"]}
    assert states[10, 0][0] == "damaged"
    assert states[10, 0][1].count("its bytes do not have their checksum") == 2
    assert "chunk 5 of 7" in states[10, 0][1]
    assert states[10, 1] == ("valid", "")
    assert run("verify", store.root, "--step", 20) == 0


def test_verify_of_nothing_proves_nothing(store, capsys):
    """Exit code 1: a typing mistake must not look like a good snapshot."""
    assert run("verify", store.root, "--step", 11) == 1
    assert "no snapshot of step 11" in capsys.readouterr().out


def test_a_snapshot_that_is_overwritten_meanwhile_is_not_called_damaged(store, monkeypatch, capsys):
    """The worker took its slot for a newer one between listing and reading."""
    scan = store.scan()
    fill(store.own(0, 0), Edition(30, 3, 2), 0)
    (store.root / "replica-3-1-0.head").unlink()
    monkeypatch.setattr("llmtrain_trainer.flash.store.Store.scan", lambda _: scan)
    assert run("verify", store.root, "--step", 10, "--json") == 0
    assert [one["state"] for one in told(capsys)["snapshots"]] == ["gone", "gone"]


# rm


def test_rm_gives_up_a_step_and_leaves_the_memory_to_its_worker(store, capsys):
    """A worker that lives goes on to write to the same memory, and what it publishes there is found."""
    room = store.own(0, 0)
    room.reserve(len(content(OLD, 0)))
    assert run("rm", store.root, "--step", 10) == 0
    assert capsys.readouterr().out == "removed 2 of step 10\n"
    assert [held.header.edition for held in store.scan()[0]] == [NEW]
    fill(room, OLD, 0)
    assert run("rm", store.root, "--step", 10, "--json") == 0
    assert [one["stem"] for one in told(capsys)["removed"]] == ["own-0-0"]
    assert run("rm", store.root, "--step", 10) == 2
    assert "no snapshot of step 10" in capsys.readouterr().err


# export


def test_export_writes_what_a_saver_would_have_written(store, storage, capsys):
    """The newest step of which every rank's shard is there; a job restores it like any other."""
    assert run("export", store.root, "--uri", storage.uri) == 0
    assert f"step 10 written to {storage.uri}, 3.2" in capsys.readouterr().out
    manifest = check(storage, OLD)
    assert [shard.name for shard in manifest.shards] == [persist.shard_name(10, 1, rank) for rank in (0, 1)]
    assert Catalog(storage).owner().round == 3


def test_a_checkpoint_that_is_there_stays_and_is_not_claimed(store, storage, capsys):
    """There is nothing to do, and whoever saves there is not disturbed."""
    assert run("export", store.root, "--uri", storage.uri, "--json") == 0
    assert (told(capsys)["step"], Catalog(storage).owner().number) == (10, 1)
    assert run("export", store.root, "--uri", storage.uri, "--force", "--json") == 0
    assert told(capsys) == {
        "uri": storage.uri,
        "step": 10,
        "committed": True,
        "size": 0,
        "message": f"step 10 is in {storage.uri} already",
    }
    assert Catalog(storage).owner().number == 1


def test_a_checkpoint_that_is_damaged_is_replaced(store, storage, tmp_path):
    """Its step is in memory, so it can be had again."""
    assert run("export", store.root, "--uri", storage.uri) == 0
    (tmp_path / "durable" / persist.shard_name(10, 1, 0)).unlink()
    assert run("export", store.root, "--uri", storage.uri, "--force") == 0
    assert check(storage, OLD).fence == 2


def test_export_does_not_shut_out_workers_that_save(store, storage, capsys):
    """Their round owns the storage; --force is for when they are gone."""
    Catalog(storage).claim(JOB, 3)
    assert run("export", store.root, "--uri", storage.uri) == 2
    assert "--force" in capsys.readouterr().err
    assert run("export", store.root, "--uri", storage.uri, "--force") == 0
    check(storage, OLD)


def test_a_later_round_is_never_fenced(store, storage, capsys):
    """What is in memory is older than what that round may have saved."""
    Catalog(storage).claim(JOB, 4)
    assert run("export", store.root, "--uri", storage.uri) == 2
    assert "round 4 of this job has claimed it" in capsys.readouterr().err
    assert Catalog(storage).checkpoints() == ()


def test_export_says_which_shards_are_missing(store, storage, capsys):
    """Exit code 1, and nothing is written."""
    head = store.root / "replica-3-1-0.head"
    head.write_bytes(b"x" + head.read_bytes())
    assert run("export", store.root, "--uri", storage.uri) == 1
    printed = capsys.readouterr()
    assert printed.err == "passed over: replica-3-1-0: the header does not have its digest\n"
    assert printed.out == (
        "no snapshot in memory is complete: of step 20 (round 3, 2 ranks) that of rank 1; "
        "of step 10 (round 3, 2 ranks) that of rank 1 cannot be had\n"
    )
    assert run("export", store.root, "--uri", storage.uri, "--step", 11) == 1
    assert "no snapshot in memory" in capsys.readouterr().out


def test_export_takes_an_older_edition_where_one_is_damaged(store, storage, capsys):
    """No byte of the damaged one is left in storage."""
    spoil(fill(store.replica(NEW, 1, 1), NEW, 1), 2**20 + 7)
    assert run("export", store.root, "--uri", storage.uri) == 0
    assert "passed over: step 20 (round 3) of rank 1 in the memory of member 0" in capsys.readouterr().err
    check(storage, OLD)
    assert [checkpoint.step for checkpoint in Catalog(storage).checkpoints()] == [10]


def test_export_prefers_another_copy_to_an_older_step(store, storage, tmp_path):
    """Of several stores that lie here each may have what another lacks."""
    other = store_in(tmp_path / "other")
    spoil(fill(store.replica(NEW, 1, 1), NEW, 1), 7)
    fill(other.own(0, 0), NEW, 1, proved=False)
    assert run("export", store.root, other.root, "--uri", storage.uri) == 0
    check(storage, NEW)


def test_one_that_is_overwritten_while_it_is_written_is_not_committed(store, storage, monkeypatch):
    """A worker that lives may take the slot at any time, also after its bytes went to storage."""
    fill(store.replica(NEW, 1, 1), NEW, 1)
    write = persist.write_shard

    def overtaken(target, name, segments, data, extras):
        entry = write(target, name, segments, data, extras)
        if name == persist.shard_name(20, 1, 0):
            fill(store.own(0, 1), Edition(30, 3, 2), 0)
        return entry

    monkeypatch.setattr(persist, "write_shard", overtaken)
    outcome = persist_newest(Memory({0: store}), Catalog(storage), [survey(store, 0)], Claimant(JOB, 3))
    assert (outcome.edition, outcome.committed) == (OLD, True)
    assert ["no longer there" in why for why in outcome.bad.values()] == [True]
    check(storage, OLD)


def test_storage_that_fails_is_told_and_nothing_is_raised(store, tmp_path, capsys):
    """Exit code 2 with the remedy; a last gasp gets it as data."""
    gone = open_storage(f"file://{tmp_path}/no/such")
    outcome = persist_newest(Memory({0: store}), Catalog(gone), [survey(store, 0)], Claimant(JOB, 3))
    assert (outcome.committed, outcome.reason) == (False, names.REASON_STORAGE_MISSING)
    assert run("export", store.root, "--uri", gone.uri) == 2
    assert "mount the volume" in capsys.readouterr().err
    assert run("export", store.root, "--uri", "ftp://x/y") == 2


# Peers


@pytest.fixture
def peer(tmp_path):
    """The other member: step 20 of its own rank, handed out to whoever is in round 3."""
    store = store_in(tmp_path / "peer")
    fill(store.own(0, 0), NEW, 1, proved=False)
    server = Server(store, "127.0.0.1", {3: "secret"}.get)
    server.start()
    yield store, f"127.0.0.1:{server.port}"
    server.close()


def test_a_shard_of_another_member_comes_through_its_agent(store, storage, peer, tmp_path, monkeypatch, capsys):
    """By the round's key, with what `ls --json` said there."""
    there, address = peer
    assert run("ls", there.root, "--json") == 0
    listing = tmp_path / "listing.json"
    listing.write_text(capsys.readouterr().out)
    export = ("export", store.root, "--uri", storage.uri, "--peer", address, listing)
    assert run(*export) == 2
    assert names.ENV_FLASH_KEY in capsys.readouterr().err
    monkeypatch.setenv(names.ENV_ROUND, "3")
    monkeypatch.setenv(names.ENV_FLASH_KEY, "secret")
    assert run(*export) == 0
    check(storage, NEW)


@pytest.mark.parametrize("trouble", ["damaged", "gone", "another key", "withdrawn"])
def test_a_member_that_cannot_give_its_shard_is_passed_over(trouble, store, storage, peer):
    """What this pod can do alone is done."""
    there, address = peer
    found = survey(there, 1, address)
    key = "secret"
    if trouble == "damaged":
        held = there.scan()[0][0]
        slot.prove(held)
        spoil(held, 2**20 + 1)
    elif trouble == "gone":
        found = Inventory(1, "127.0.0.1:1", found.entries)
    elif trouble == "another key":
        key = "guessed"
    else:
        Slot(there.root / "own-0-0").withdraw()
    memory = Memory({0: store}, Pass(3, key))
    outcome = persist_newest(memory, Catalog(storage), [survey(store, 0), found], Claimant(JOB, 3))
    assert outcome.committed
    assert list(outcome.bad) == ["step 20 (round 3) of rank 1 in the memory of member 1 (own-0-0)"]
    check(storage, OLD)


def test_a_listing_that_lies_is_found_out(store, storage, peer):
    """A shard counts as what its own head says, not as what somebody said of it."""
    there, address = peer
    [entry] = survey(there, 1, address).entries
    lie = Inventory(1, address, (Entry(Edition(30, 3, 1), 0, entry.stem, entry.mark),))
    memory = Memory({0: store}, Pass(3, "secret"))
    outcome = persist_newest(memory, Catalog(storage), [survey(store, 0), lie], Claimant(JOB, 3))
    assert "another snapshot than was announced" in next(iter(outcome.bad.values()))
    check(storage, OLD)


@pytest.mark.parametrize("text", ["", "{}", '{"snapshots": [1]}', None])
def test_a_file_that_is_no_listing_is_told(text, store, storage, tmp_path, monkeypatch, capsys):
    """Exit code 2."""
    monkeypatch.setenv(names.ENV_ROUND, "3")
    monkeypatch.setenv(names.ENV_FLASH_KEY, "secret")
    file = tmp_path / "listing"
    if text is not None:
        file.write_text(text)
    assert run("export", store.root, "--uri", storage.uri, "--peer", "127.0.0.1:1", file) == 2
    assert "--peer" in capsys.readouterr().err


def test_what_is_lacking_is_said_of_the_newest_editions_only():
    """Nobody needs to hear of the fourth."""
    entries = tuple(Entry(Edition(step, 1, 3), 1, "s", "m") for step in (1, 2, 3, 4))
    text = lacking([Inventory(0, "", entries)])
    assert text.startswith(
        "no snapshot in memory is complete: of step 4 (round 1, 3 ranks) that of rank 0, 2; of step 3"
    )
    assert "step 1 " not in text
    assert lacking([]) == "there is no snapshot in memory"


def test_it_runs_as_a_module_and_never_loads_torch(store, storage):
    """Seconds and hundreds of megabytes that a pod in trouble does not have."""
    done = subprocess.run(
        [sys.executable, "-v", "-m", "llmtrain_trainer.flash", "export", "--uri", storage.uri],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, names.ENV_FLASH: str(store.root), names.ENV_JOB_UID: JOB},
    )
    assert "step 10 written" in done.stdout
    assert "import 'llmtrain_trainer.flash.tool'" in done.stderr
    assert "import 'torch" not in done.stderr
    assert "import 'numpy" not in done.stderr
