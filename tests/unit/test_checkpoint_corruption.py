"""Whatever happens to stored bytes: a restore gives exactly what was saved at some step, and names what it passed."""

from __future__ import annotations

import random
import shutil
from dataclasses import replace

import pytest

from llmtrain_trainer.checkpoint import proof
from llmtrain_trainer.checkpoint.catalog import Catalog
from llmtrain_trainer.checkpoint.storage import open_storage
from tests.support import checkpoints, damage

DAMAGES = 210
WORLD_SIZES = {100: 3, 200: 2, 300: 2}
NEWEST, OLDER = 300, (200, 100)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """Three checkpoints; at the newest step also the shards of a round that was fenced before it could commit."""
    root = tmp_path_factory.mktemp("pristine")
    storage = open_storage(f"file://{root}")
    catalog = Catalog(storage)
    fence = catalog.claim("job-a", 1)
    checkpoints.save(catalog, fence, 100, WORLD_SIZES[100])
    checkpoints.save(catalog, fence, 200, WORLD_SIZES[200])
    checkpoints.write_shards(storage, NEWEST, fence, WORLD_SIZES[NEWEST], seed=9)
    checkpoints.save(catalog, catalog.claim("job-a", 2), NEWEST, WORLD_SIZES[NEWEST])
    return root


def check(storage, spoilt: dict[int, set[str]]) -> None:
    """A restore gives one step's state, bit for bit, and every step above it was named for a file that was spoilt."""
    found = checkpoints.restore(storage)
    assert found.step is not None
    assert replace(found, skipped=()) == checkpoints.expected(found.step, WORLD_SIZES[found.step])
    passed = {step for step in WORLD_SIZES if step > found.step}
    named = {int(line[5:17]): line.split(":")[0].split("/")[-1] for line in found.skipped}
    assert set(named) == passed <= set(spoilt), found.skipped
    assert all(named[step] in spoilt[step] for step in passed), (found.skipped, spoilt)


@pytest.mark.parametrize("number", range(DAMAGES))
def test_no_damage_is_restored_and_none_goes_unnamed(number, pristine, tmp_path):
    """Every third time the next older checkpoint is damaged as well, in its own way."""
    chance = random.Random(number)
    kind = damage.ALL[number % len(damage.ALL)]
    shutil.copytree(pristine, tmp_path, dirs_exist_ok=True)
    spoilt = {NEWEST: kind(tmp_path / f"step-{NEWEST:012d}", chance)}
    if number % 3 == 0:
        other = chance.choice([one for one in damage.ALL if one is not damage.shard_of_another_fence])
        spoilt[OLDER[0]] = other(tmp_path / f"step-{OLDER[0]:012d}", chance)
    storage = open_storage(f"file://{tmp_path}")
    check(storage, spoilt)
    newest = Catalog(storage).checkpoint(NEWEST)
    found = {one.name.split("/")[-1] for one in proof.damage(storage, newest)}
    assert found <= spoilt[NEWEST]
    assert found or checkpoints.restore(storage).step == NEWEST, "verify calls it good, but it was not restored"


def test_without_damage_the_newest_is_restored_and_nothing_is_skipped(pristine):
    """So that the test above cannot pass by finding everything bad."""
    storage = open_storage(f"file://{pristine}")
    assert checkpoints.restore(storage) == checkpoints.expected(NEWEST, WORLD_SIZES[NEWEST])
    assert proof.damage(storage, Catalog(storage).checkpoint(NEWEST)) == ()


def test_a_manifest_that_is_missing_means_that_the_step_was_never_committed(pristine, tmp_path):
    """Nothing is damaged then: a save that was cut short looks the same."""
    shutil.copytree(pristine, tmp_path, dirs_exist_ok=True)
    (tmp_path / f"step-{NEWEST:012d}" / "manifest.json").unlink()
    found = checkpoints.restore(open_storage(f"file://{tmp_path}"))
    assert found == checkpoints.expected(OLDER[0], WORLD_SIZES[OLDER[0]])
    assert found.skipped == ()


def test_when_all_are_damaged_nothing_is_restored_and_all_are_named(pristine, tmp_path):
    """The caller must not take that for an empty storage."""
    shutil.copytree(pristine, tmp_path, dirs_exist_ok=True)
    for step in WORLD_SIZES:
        damage.swap_shards(tmp_path / f"step-{step:012d}", random.Random(step))
    found = checkpoints.restore(open_storage(f"file://{tmp_path}"))
    assert found.step is None
    assert [int(line[5:17]) for line in found.skipped] == [NEWEST, *OLDER]
