"""The checkpoints in a storage, and whose turn it is to write them.

    fence-00000007.json                         the claims: the highest number owns the storage
    step-000000001200/shard-00000007-00000.bin  one per rank, named by the fence under which it was written
    step-000000001200/manifest.json             written last: with it the checkpoint exists

Guarantees: a checkpoint without an intact manifest of its own step is never offered; of two rounds that both believe
they own the storage, only the one with the newest claim commits (the other gets `Fenced`), and neither overwrites the
other's shards. Limit: a commit looks at the fences just before it writes; a round that is fenced in between may still
commit. Its checkpoint is then a whole one of an earlier round, which does no harm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llmtrain_operator.contract import names
from llmtrain_trainer.checkpoint.manifest import Manifest
from llmtrain_trainer.checkpoint.storage import Storage
from llmtrain_trainer.errors import TrainerError

State = Literal["valid", "incomplete", "damaged", "newer"]


class Fenced(TrainerError):  # noqa: N818 - it says what happened
    """A newer round, or another job, owns the storage: this process is a leftover and must write nothing more."""

    def __init__(self, message: str) -> None:
        super().__init__(names.REASON_FENCED, message)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint as far as it can be told without reading its data.

    "valid": its manifest is intact and all shards are there in their sizes; "incomplete": no manifest (it is being
    written, or was given up); "damaged"; "newer": of a format that this version does not read. `why` says more unless
    it is valid. `size` is what is stored, in bytes; `modified` in seconds since the epoch.
    """

    step: int
    state: State
    why: str
    size: int
    modified: float
    manifest: Manifest | None


def shard_name(step: int, fence: int, rank: int) -> str:
    """Where a rank's shard goes."""
    return f"{step_directory(step)}/shard-{fence:08d}-{rank:05d}.bin"


def step_directory(step: int) -> str:
    """Where a step's checkpoint goes."""
    return f"step-{step:012d}"


class Catalog:
    """The checkpoints of one storage. Every method raises `StorageError`."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    def claim(self, job_uid: str, round_number: int) -> int:
        """Own the storage from now on: the fence number, which is higher than every earlier one.

        Raises `Fenced` if a later round of this job has claimed it already, or another job has since this job did.
        """
        raise NotImplementedError

    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """All of them, the newest step first."""
        raise NotImplementedError

    def newest_valid(self, below: int | None = None) -> tuple[Manifest | None, tuple[str, ...]]:
        """The newest valid checkpoint (of a step less than `below`), and what was passed over: `step-...: why`.

        Incomplete ones are not counted as passed over: they were never committed. Raises `NewerFormat`.
        """
        raise NotImplementedError

    def commit(self, manifest: Manifest) -> None:
        """Make the checkpoint exist. Its shards must be written. Raises `Fenced`; needs `claim` first."""
        raise NotImplementedError

    def discard(self, step: int) -> None:
        """Remove what a save of this claim, which failed, has left at `step`: on a full disk the next needs the room.

        Does nothing if the step is committed.
        """
        raise NotImplementedError

    def prune(self, keep: int) -> tuple[str, ...]:
        """Remove what is no longer needed; the steps' directories that are gone. Raises `Fenced`.

        Kept are the newest `keep` (at least one) valid checkpoints, and everything newer than the oldest of them.
        Also goes what saves of older claims have left behind, and saves of this claim older than its newest commit.
        """
        raise NotImplementedError
