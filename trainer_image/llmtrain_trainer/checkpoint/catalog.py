"""The checkpoints in a storage, and whose turn it is to write them.

    fence-00000007.json                         the claims: the highest number owns the storage
    step-000000001200/shard-00000007-00000.bin  one per rank, named by the fence under which it was written
    step-000000001200/manifest.json             written last: with it the checkpoint exists
    frozen/shard-00000007-00000-step-000000001200.bin  what has not changed since then; later manifests name it too

Guarantees: a checkpoint without an intact manifest of its own step is never offered; of two rounds that both believe
they own the storage, only the one with the newest claim commits (the other gets `Fenced`), and neither overwrites the
other's shards. Limit: a commit looks at the fences just before it writes; a round that is fenced in between may still
commit. Its checkpoint is then a whole one of an earlier round, which does no harm.
"""

from __future__ import annotations

import secrets
from typing import Final

from llmtrain_operator.contract import names
from llmtrain_operator.contract.wire import NOTHING, Avoid
from llmtrain_trainer.checkpoint import claims
from llmtrain_trainer.checkpoint import manifest as manifests
from llmtrain_trainer.checkpoint.claims import Claim
from llmtrain_trainer.checkpoint.manifest import Damaged, Manifest, NewerFormat
from llmtrain_trainer.checkpoint.retention import doomed, left_behind, old_claims, unnamed
from llmtrain_trainer.checkpoint.shardfile import ShardReader
from llmtrain_trainer.checkpoint.storage import Entry, Storage, StorageError
from llmtrain_trainer.checkpoint.stored import (
    FROZEN,
    Checkpoint,
    fence_of,
    frozen_at,
    frozen_name,
    is_ours,
    manifest_at,
    manifest_name,
    misfits,
    shard_name,
    step_directory,
    step_of,
)
from llmtrain_trainer.errors import TrainerError

__all__ = ["Catalog", "Checkpoint", "Fenced", "frozen_name", "shard_name", "step_directory"]

_ATTEMPTS: Final = 100


class Fenced(TrainerError):  # noqa: N818 - it says what happened
    """A newer round, or another job, owns the storage: this process is a leftover and must write nothing more."""

    def __init__(self, message: str) -> None:
        super().__init__(names.REASON_FENCED, message)


class Catalog:
    """The checkpoints of one storage. Every method raises `StorageError`. Not for several threads at once."""

    def __init__(self, storage: Storage, avoid: Avoid = NOTHING) -> None:
        """`avoid`: what this job was rolled back from. It is neither offered nor kept for long."""
        self.storage, self._avoid = storage, avoid
        self._mine: Claim | None = None

    def claim(self, job_uid: str, round_number: int) -> int:
        """Own the storage from now on: the fence number, which is higher than every earlier one.

        Raises `Fenced` if a later round of this job has claimed it already, or another job has since this job did.
        """
        self.storage.prepare()
        token = secrets.token_hex(8)
        for _ in range(_ATTEMPTS):
            claim, why = claims.follow(self.owner(), job_uid, round_number, token)
            if claim is None:
                raise Fenced(f"{self.storage.uri}: {why}")
            self.storage.create(claim.name, claims.encode(claim))
            if self.owner() == claim:  # else another one was quicker: look again
                self._mine = claim
                return claim.number
        raise StorageError(
            names.REASON_STORAGE_UNREACHABLE,
            f"{self.storage.uri}: a claim (fence-*.json) can neither be created nor read; look after the storage",
        )

    def owner(self) -> Claim | None:
        """The newest claim, None if nobody has claimed the storage."""
        numbers = (claims.number_of(file.name) for file in self.storage.list().files)
        newest = max((number for number in numbers if number is not None), default=None)
        if newest is None:
            return None
        name = Claim(newest, "", 0, "").name
        return claims.decode(self.storage.read(name) or b"", newest)

    def check(self) -> int:
        """This catalog's fence number. Raises `Fenced` unless its claim is the newest.

        A claim that is gone from the storage together with all others (a directory or bucket that was lost and made
        again) is put back.
        """
        mine = self._mine
        if mine is None:
            raise ValueError("the storage has to be claimed first")
        newest = self.owner()
        standing = claims.standing(mine, newest)
        if standing == "gone":
            self.storage.create(mine.name, claims.encode(mine))
        elif standing == "followed" and newest:
            who = f"claim {newest.number} (job {newest.job_uid}, round {newest.round})"
            raise Fenced(f"{self.storage.uri}: {who} has followed claim {mine.number} of this process")
        return mine.number

    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """All of them, the newest step first."""
        return tuple(self.checkpoint(step) for step in self._steps())

    def checkpoint(self, step: int) -> Checkpoint:
        """The checkpoint at `step`; incomplete if there is nothing."""
        files = self._files(step)
        try:
            manifest = self._load(step, files)
        except Damaged as damaged:
            return Checkpoint(step, "damaged", str(damaged), files, None)
        except NewerFormat as newer:
            return Checkpoint(step, "newer", str(newer), files, None)
        if manifest is None:
            return Checkpoint(step, "incomplete", "it has no manifest", files, None)
        return Checkpoint(step, "valid", "", files, manifest)

    def newest_valid(self, below: int | None = None) -> tuple[Manifest | None, tuple[str, ...]]:
        """The newest valid checkpoint (of a step less than `below`), and what was passed over: `FILE: why`.

        Incomplete ones are not counted as passed over: they were never committed; nor is what was rolled back from,
        unless there is nothing else. Raises `NewerFormat`.
        """
        skipped, void = [], []
        for step in self._steps():
            if below is not None and step >= below:
                continue
            try:
                manifest = self._load(step, self._files(step))
            except Damaged as damaged:
                skipped.append(str(damaged))
                continue
            if manifest is None:
                continue
            if self._avoid.voids(step, manifest.round):
                void.append(f"{manifest_name(step)}: training was rolled back from it")
                continue
            return manifest, tuple(skipped)
        return None, (*void, *skipped)

    def commit(self, manifest: Manifest) -> None:
        """Make the checkpoint exist. Its shards must be written, and be seen from here. Raises `Fenced`; needs `claim`.

        An earlier checkpoint of the same step is replaced, unless it is of a newer claim.
        """
        if self.check() != manifest.fence:
            raise ValueError(f"the manifest has fence {manifest.fence}, but the storage was claimed with another")
        self._look_for_shards(manifest)
        name, data = manifest_name(manifest.step), manifests.encode(manifest)
        if self.storage.create(name, data):
            return
        stored = self.storage.read(name) or b""
        if stored == data:
            return
        if _fence_in(stored, name) > manifest.fence:
            raise Fenced(f"{self.storage.uri}: a newer claim has committed step {manifest.step}")
        self.storage.write(name, [memoryview(data)], len(data))

    def discard(self, step: int) -> None:
        """Remove what a save of this claim, which failed, has left at `step`: on a full disk the next needs the room.

        Does nothing if the step is committed.
        """
        files = [file.name for file in self._files(step)]
        if self._mine and manifest_name(step) not in files:
            mine = self._mine.number
            left = [name for name in files if fence_of(name) == mine]
            self.storage.delete(left + [name for name in self._frozen() if frozen_at(name) == (mine, step)])

    def clear(self) -> None:
        """Remove what saves of earlier claims left when they were killed: nobody else does before the next commit, for
        which there may be no room. Raises `Fenced`."""
        found, fence = self.checkpoints(), self.check()
        self.storage.delete(left_behind(found, fence))
        self.storage.delete(unnamed(found, self._frozen(), fence))

    def remove(self, step: int) -> None:
        """Remove a checkpoint, its manifest first, and what no other shares with it; files that are none of ours stay.

        Frozen parts of the newest claim stay as long as there is another checkpoint: its round may just be about to
        name them again. Those, and the ones of a checkpoint that is not valid, are left for the next save to remove.
        """
        manifest = self.checkpoint(step).manifest
        self._remove(step)
        if manifest and manifest.frozen:
            left, owner = self.checkpoints(), self.owner()
            if not left:
                self.storage.delete(self._frozen())
            elif owner:
                self.storage.delete(unnamed(left, [part.name for part in manifest.frozen], owner.number))

    def _remove(self, step: int) -> None:
        files = [file.name for file in self._files(step)]
        self.storage.delete([name for name in files if name == manifest_name(step)])
        self.storage.delete(files)

    def prune(self, keep: int, newest: int) -> tuple[str, ...]:
        """Remove what `retention.doomed` says and what training was rolled back from; the steps' directories that are
        gone. Raises `Fenced`."""
        fence = self.check()
        found = self.checkpoints()
        void = [one.step for one in found if one.manifest and self._avoid.voids(one.step, one.manifest.round)]
        gone = doomed([checkpoint for checkpoint in found if checkpoint.step not in void], fence, keep, newest)
        steps = (*void, *gone.steps)
        for step in steps:
            self._remove(step)
        self.storage.delete(gone.strays)
        left = [checkpoint for checkpoint in found if checkpoint.step not in steps]
        self.storage.delete(unnamed(left, self._frozen(), fence + 1))
        self.storage.delete(old_claims([file.name for file in self.storage.list().files], fence))
        return tuple(step_directory(step) for step in steps)

    def _look_for_shards(self, manifest: Manifest) -> None:
        """Raises `StorageError` unless the other members' shards are where this one will look for them."""
        suspects = {damaged.name for damaged in misfits(manifest, self._files_of(manifest))}
        try:
            for shard in manifest.parts:
                if shard.name in suspects:  # or the listing is old, which NFS allows: a file that is opened is not
                    ShardReader(self.storage, shard)
        except Damaged as damaged:
            raise StorageError(
                names.REASON_STORAGE_MISSING,
                f"{self.storage.uri}: another member has written {damaged.name}, but here {damaged.why}: the storage "
                "has to be one place for all members, such as a ReadWriteMany claim (pvc://) or a bucket (s3://)",
            ) from damaged

    def _steps(self) -> list[int]:
        found = (step_of(name) for name in self.storage.list().directories)
        return sorted((step for step in found if step is not None), reverse=True)

    def _files(self, step: int) -> tuple[Entry, ...]:
        return tuple(file for file in self.storage.list(step_directory(step)).files if is_ours(file.name))

    def _load(self, step: int, files: tuple[Entry, ...]) -> Manifest | None:
        """None if there is no manifest. Raises `Damaged` and `NewerFormat`."""
        name = manifest_name(step)
        if name not in {file.name for file in files} or (data := self.storage.read(name)) is None:
            return None
        manifest = manifest_at(step, data)
        for misfit in misfits(manifest, self._files_of(manifest, files)):
            raise misfit
        return manifest

    def _files_of(self, manifest: Manifest, own: tuple[Entry, ...] | None = None) -> tuple[Entry, ...]:
        """Where the manifest's parts may be. `own`: the files of its step, if they are known."""
        own = self._files(manifest.step) if own is None else own
        return (*own, *self.storage.list(FROZEN).files) if manifest.frozen else own

    def _frozen(self) -> list[str]:
        return [file.name for file in self.storage.list(FROZEN).files]


def _fence_in(stored: bytes, name: str) -> int:
    """The claim of a stored manifest, -1 if it is damaged."""
    try:
        return manifests.decode(stored, name).fence
    except Damaged:
        return -1
