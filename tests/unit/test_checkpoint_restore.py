"""What a round goes on from when its first choice cannot be read."""

import pytest

from llmtrain_operator.contract import names
from llmtrain_trainer.checkpoint import restore
from llmtrain_trainer.checkpoint.catalog import Catalog, shard_name
from llmtrain_trainer.checkpoint.manifest import Damaged
from llmtrain_trainer.checkpoint.storage import open_storage
from llmtrain_trainer.errors import TrainerError
from tests.support.checkpoints import save


@pytest.fixture
def uri(tmp_path):
    return f"file://{tmp_path}/checkpoints"


@pytest.fixture
def catalog(uri):
    catalog = Catalog(open_storage(uri))
    catalog.fence = catalog.claim("a", 1)
    return catalog


def damage(step):
    return Damaged(shard_name(step, 1, 0), "chunk 1 of 1: its bytes do not have their checksum")


def test_the_next_older_one_is_taken_for_a_damaged_one(catalog, uri):
    """Both are named in the end."""
    for step in (10, 20, 30):
        save(catalog, catalog.fence, step)
    first = restore.choose(None, uri)
    second = restore.choose_older(first, damage(30))
    third = restore.choose_older(second, damage(20))
    assert [source.manifest.step for source in (first, second, third)] == [30, 20, 10]
    assert third.skipped == (str(damage(30)), str(damage(20)))
    with pytest.raises(TrainerError, match="none of them is valid") as caught:
        restore.choose_older(third, damage(10))
    assert caught.value.reason == names.REASON_CHECKPOINT_LOST


def test_a_checkpoint_that_its_job_removed_meanwhile_is_none_that_is_lost(catalog, uri):
    """`restoreFrom` a job that still trains and keeps one: its next save removes what is just being read."""
    save(catalog, catalog.fence, 10)
    source = restore.choose(None, uri)
    save(catalog, catalog.fence, 20)
    catalog.prune(1, 20)
    instead = restore.choose_older(source, Damaged(shard_name(10, 1, 0), "it is missing or too short"))
    assert (instead.manifest.step, instead.skipped) == (20, ())
