"""Manifests and claims as they are stored, and the one checkpoint of format 1 that must be restorable for ever."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from llmtrain_operator.contract import names
from llmtrain_trainer.checkpoint import claims, manifest, proof
from llmtrain_trainer.checkpoint.catalog import Catalog
from llmtrain_trainer.checkpoint.layout import Segment
from llmtrain_trainer.checkpoint.manifest import Damaged, Manifest, NewerFormat, ShardEntry
from llmtrain_trainer.checkpoint.shardfile import ShardReader
from llmtrain_trainer.checkpoint.storage import open_storage

GOLDEN = Path(__file__).parents[1] / "golden" / "checkpoint-format-1"
GOLDEN_SHA256 = {
    ("embed.weight", "master"): "167c11a02b86af26202c607b0ad63dbad90bc7636bf1948dccd7531aee6b252a",
    ("embed.weight", "exp_avg"): "22be00b874e61d5150486c0f0a03b995e898de4bf6ffcdbdf1357b05677fd7cb",
    ("norm.weight", "master"): "d272be14ac91af605f4f90c18c4bc38ccb67b0a7a35c4d4950a50cab00b9b7b1",
    ("norm.weight", "exp_avg"): "c26b6366b99e78b2b3bb151ee41c2232fd1a37795c3f81e0fbab54bd2dc71cdf",
}
MANIFEST = Manifest(
    step=12,
    fence=3,
    job_uid="uid",
    round=2**32 + 1,
    world_size=2,
    created=1.8e9,
    shards=(ShardEntry("step-000000000012/shard-00000003-00000.bin", 100, 50, "0" * 32),),
    state={"lr": 0.1 + 0.2, "nested": {"list": [1, None, True], "text": "é"}, "nan": float("inf")},
)


def test_the_golden_checkpoint_of_format_1_restores():
    """Written once and never again: what a user has stored must not become unreadable."""
    storage = open_storage(f"file://{GOLDEN}")
    found, skipped = Catalog(storage).newest_valid()
    assert (found.step, found.world_size, found.round, skipped) == (12, 2, 1, ())
    assert found.state == {"data": {"position": 288}, "seed": 1, "loss_scale": None}
    readers = [ShardReader(storage, entry) for entry in found.shards]
    assert [reader.extras for reader in readers] == [{"rng": "12/0"}, {"rng": "12/1"}]
    content: dict[tuple[str, str], bytes] = dict.fromkeys(GOLDEN_SHA256, b"")
    for reader in readers:
        for segment in reader.segments:
            room = bytearray(segment.length)
            reader.read_into(segment.offset, memoryview(room))
            content[segment.parameter, segment.kind] += room
    assert {key: hashlib.sha256(data).hexdigest() for key, data in content.items()} == GOLDEN_SHA256
    assert readers[0].segments[0] == Segment("embed.weight", "master", 0, 600, "float32", 0)


def test_the_golden_checkpoint_is_whole_and_its_claim_is_read():
    """verify and the fences of format 1 work too."""
    catalog = Catalog(open_storage(f"file://{GOLDEN}"))
    assert proof.damage(catalog.storage, catalog.checkpoint(12)) == ()
    owner = catalog.owner()
    assert (owner.number, owner.job_uid) == (1, "5f0c6f9e-2f0b-4d5e-9c55-1d7b7a1f0001")


def test_a_manifest_comes_back_as_it_was():
    """Numbers bit for bit."""
    assert manifest.decode(manifest.encode(MANIFEST), "m") == MANIFEST


def test_a_state_that_json_would_change_comes_back_as_json_has_it():
    """Keys become text and tuples lists before the digest is taken, not after."""
    odd = Manifest(1, 1, "", 1, 1, 0.0, (), {"by_rank": {10: (1, 2), 9: "x"}})
    assert manifest.decode(manifest.encode(odd), "m").state == {"by_rank": {"10": [1, 2], "9": "x"}}


def test_a_state_that_is_no_json_is_refused():
    """At the save, not at the restore."""
    with pytest.raises(TypeError):
        manifest.encode(Manifest(1, 1, "", 1, 1, 0.0, (), {"x": object()}))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "empty"),
        (b"{", "not JSON"),
        (b"[]", "no content"),
        (b'{"content": {"formatVersion": "1"}, "digest": "x"}', "no content"),
        (manifest.encode(MANIFEST).replace(b'"step":12', b'"step":13'), "digest"),
        (manifest.seal({"formatVersion": 1, "step": 1}), "does not say"),
        (manifest.encode(MANIFEST)[:-3], "not JSON"),
    ],
)
def test_what_is_no_intact_manifest_is_damaged(data, why):
    """The file is named and why."""
    with pytest.raises(Damaged, match=why) as caught:
        manifest.decode(data, "step-1/manifest.json")
    assert caught.value.name == "step-1/manifest.json"


def test_a_newer_format_is_refused_by_name_and_is_not_called_damaged():
    """The message names both versions; the reason tells the operator that a restart does not help."""
    content = json.loads(manifest.encode(MANIFEST))["content"] | {"formatVersion": manifest.FORMAT + 1}
    with pytest.raises(NewerFormat, match=rf"format {manifest.FORMAT + 1}.*up to {manifest.FORMAT}") as caught:
        manifest.decode(manifest.seal(content), "m")
    assert caught.value.reason == names.REASON_CHECKPOINT_MISMATCH
    assert caught.value.reason in names.PERMANENT_REASONS


def test_a_format_number_that_was_damaged_is_damage():
    """A flipped bit must not look like a newer version, which would end the job."""
    data = manifest.encode(MANIFEST).replace(b'"formatVersion":1', b'"formatVersion":9')
    with pytest.raises(Damaged):
        manifest.decode(data, "m")


def test_a_claim_comes_back_as_it_was():
    """And a damaged one still counts by its number, so that no number is given twice."""
    claim = claims.Claim(7, "uid", 3, "token", ("older",))
    assert claims.decode(claims.encode(claim), 7) == claim
    assert claims.decode(b"", 7).number == 7
    assert claims.number_of(claim.name) == 7
    assert claims.number_of("fence-7.json") is None


A3 = claims.Claim(5, "a", 3, "t")


@pytest.mark.parametrize(
    ("newest", "job", "round_number", "number", "superseded", "why"),
    [
        (None, "a", 1, 1, (), ""),
        (A3, "a", 4, 6, (), ""),
        (A3, "a", 3, 6, (), ""),
        (A3, "a", 2, None, None, "round 3 of this job has claimed it"),
        (A3, "b", 1, 6, ("a",), ""),
        (claims.Claim(6, "b", 1, "t", ("a",)), "b", 2, 7, ("a",), ""),
        (claims.Claim(6, "b", 1, "t", ("a",)), "a", 9, None, None, "job b has taken it over"),
        (claims.Claim(6, "b", 1, "t", ("a",)), "c", 1, 7, ("a", "b"), ""),
        (claims.Claim(6, "", -1, ""), "a", 1, 7, (), ""),
    ],
    ids=[
        "first",
        "next-round",
        "same-round-again",
        "stale-round",
        "new-job",
        "new-job-goes-on",
        "old-job-back",
        "third-job",
        "after-a-damaged-claim",
    ],
)
def test_who_may_have_the_storage_next(newest, job, round_number, number, superseded, why):
    """A later round and a new job may; a stale round and a job that was followed may not."""
    claim, refusal = claims.follow(newest, job, round_number, "mine")
    if number is None:
        assert claim is None
        assert why in refusal
    else:
        assert claim == claims.Claim(number, job, round_number, "mine", superseded)


@pytest.mark.parametrize(
    ("newest", "what"),
    [
        (A3, "holds"),
        (None, "gone"),
        (claims.Claim(2, "a", 2, "t"), "gone"),
        (claims.Claim(6, "a", 4, "t"), "followed"),
        (claims.Claim(5, "a", 3, "other"), "followed"),
        (claims.Claim(1, "a", 4, "t"), "followed"),
        (claims.Claim(1, "b", 1, "t"), "followed"),
    ],
    ids=[
        "own",
        "all-lost",
        "newest-lost",
        "next-round",
        "same-number",
        "next-round-in-a-new-place",
        "job-in-a-new-place",
    ],
)
def test_what_has_become_of_a_claim(newest, what):
    """Of the third round of job a, which had number 5."""
    assert claims.standing(A3, newest) == what
