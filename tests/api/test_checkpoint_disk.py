"""Checkpoints on a disk that is full, read-only or not ours: real file systems, so root's rights are needed."""

from __future__ import annotations

import os
import subprocess

import pytest

from llmtrain_operator.contract import names
from llmtrain_trainer.checkpoint.catalog import Catalog, shard_name
from llmtrain_trainer.checkpoint.shardfile import write_shard
from llmtrain_trainer.checkpoint.storage import StorageError, open_storage
from tests.support import checkpoints

MIB = 2**20
NOBODY = 65534


@pytest.fixture
def disk(tmp_path):
    """A file system of 8 MB."""
    path = tmp_path / "disk"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m,mode=0755", "tmpfs", str(path)], check=True)
    yield path
    subprocess.run(["umount", str(path)], check=True)


@pytest.fixture
def catalog(disk):
    """With a claim and a checkpoint of step 10."""
    catalog = Catalog(open_storage(f"file://{disk}/job"))
    checkpoints.save(catalog, catalog.claim("a", 1), 10)
    return catalog


def reason_of(attempt) -> str:
    with pytest.raises(StorageError) as caught:
        attempt()
    return caught.value.reason


def test_a_full_disk_is_told_and_used_again_when_there_is_room(catalog, disk):
    """The failed save leaves nothing that takes room, and the checkpoint before it is good."""
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(5 * MIB))
    big = memoryview(bytes(4 * MIB))
    before = os.statvfs(disk).f_bfree
    name = shard_name(20, 1, 0)
    assert reason_of(lambda: write_shard(catalog.storage, name, (), big, {})) == names.REASON_STORAGE_FULL
    catalog.discard(20)
    assert os.statvfs(disk).f_bfree >= before - 1
    assert checkpoints.restore(catalog.storage) == checkpoints.expected(10, 2)
    ballast.unlink()
    write_shard(catalog.storage, name, (), big, {})
    checkpoints.save(catalog, 1, 30)
    assert catalog.prune(1, 30) == ("step-000000000020", "step-000000000010")
    assert checkpoints.restore(catalog.storage) == checkpoints.expected(30, 2)


def test_a_disk_that_turns_read_only_is_told_and_can_be_read(catalog, disk):
    """As after an error of the disk; when it is writable again saving goes on."""
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    assert reason_of(lambda: checkpoints.save(catalog, 1, 20)) == names.REASON_STORAGE_READ_ONLY
    assert reason_of(lambda: Catalog(catalog.storage).claim("a", 2)) == names.REASON_STORAGE_READ_ONLY
    assert checkpoints.restore(catalog.storage) == checkpoints.expected(10, 2)
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    checkpoints.save(catalog, 1, 20)
    assert checkpoints.restore(catalog.storage) == checkpoints.expected(20, 2)


def test_a_directory_of_someone_else_is_denied(catalog):
    """With the words that help: which user may write is the pod's matter."""
    os.seteuid(NOBODY)
    try:
        reason = reason_of(lambda: checkpoints.save(catalog, 1, 20))
    finally:
        os.seteuid(0)
    assert reason == names.REASON_STORAGE_DENIED


def test_a_volume_that_is_unmounted_is_missing_and_not_empty(catalog, disk):
    """The directory below the mount must not be written instead."""
    subprocess.run(["umount", str(disk)], check=True)
    try:
        assert reason_of(lambda: checkpoints.save(catalog, 1, 20)) == names.REASON_STORAGE_MISSING
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(disk)], check=True)
