"""Whether every stored byte of a checkpoint is what was written."""

from __future__ import annotations

from llmtrain_trainer.checkpoint.manifest import Damaged, Manifest
from llmtrain_trainer.checkpoint.shardfile import ShardReader
from llmtrain_trainer.checkpoint.storage import Entry, Storage
from llmtrain_trainer.checkpoint.stored import FROZEN, Checkpoint, manifest_at, manifest_name, misfits


def damage(storage: Storage, checkpoint: Checkpoint) -> tuple[Damaged, ...]:
    """Everything that is wrong with a committed checkpoint, after reading all of it: each file, each chunk.

    Raises `NewerFormat`, and `StorageError` if it cannot be told.
    """
    name = manifest_name(checkpoint.step)
    try:
        manifest = manifest_at(checkpoint.step, storage.read(name) or b"")
    except Damaged as damaged:
        return (damaged,)
    files = (*checkpoint.files, *(storage.list(FROZEN).files if manifest.frozen else ()))
    return (*misfits(manifest, files), *_in_shards(storage, manifest, files))


def _in_shards(storage: Storage, manifest: Manifest, files: tuple[Entry, ...]) -> list[Damaged]:
    there = {file.name for file in files}
    found: list[Damaged] = []
    for shard in manifest.parts:
        if shard.name not in there:
            continue
        try:
            found += (Damaged(shard.name, why) for why in ShardReader(storage, shard).damage())
        except Damaged as damaged:
            found.append(damaged)
    return found
