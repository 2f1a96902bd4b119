"""How the ranks agree on a save behind training's back: notes in the round's store, no collectives.

A collective from a second thread could be matched with one of training's. So rank 0 says under which fence a save is
written, every rank says what became of its shard, and rank 0 says how it ended; each note is one key of a TCPStore,
below a prefix of this round. Every wait has an end: a rank that dies leaves the others with an error, and the
checkpoint without a manifest.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from torch.distributed import DistError, PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from llmtrain_operator.contract import names
from llmtrain_trainer.checkpoint.manifest import ShardEntry, entry_from_json, entry_to_json
from llmtrain_trainer.checkpoint.storage import StorageError
from llmtrain_trainer.errors import TrainerError

PATIENCE: Final = 120.0
"""Seconds that a rank waits for another at least; see `Accord.patience`."""
_CONNECT: Final = timedelta(seconds=60)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a save ended, in rank 0's words.

    `reason` (`names.REASON_*`) and `message` say why it was not `committed`, or what went wrong after the commit.
    `size` in bytes over all ranks; `seconds` from the copy to the commit.
    """

    step: int
    committed: bool = False
    reason: str = ""
    message: str = ""
    size: int = 0
    seconds: float = 0.0


class Accord:
    """The notes of one rank's saver. Save number `n` counts from 1 and is the same on every rank.

    Methods that wait raise `StorageError` when the other does not answer, or had an error itself.
    """

    def __init__(self, store: Store, rank: int, world_size: int, patience: float = PATIENCE) -> None:
        self._store, self._rank, self._world_size, self._patience = store, rank, world_size, patience

    def say_fence(self, n: int, fence: int) -> None:
        """Rank 0: the save is written under this fence."""
        self._set(f"{n}/fence", {"fence": fence})

    def say_no_fence(self, n: int, error: TrainerError) -> None:
        """Rank 0: the save cannot begin."""
        self._set(f"{n}/fence", _failure(error))

    def fence(self, n: int) -> int:
        """Wait for rank 0 to say the fence."""
        return int(self._get(f"{n}/fence", "rank 0 did not begin the checkpoint", 2 * self._patience)["fence"])

    def say_shard(self, n: int, entry: ShardEntry) -> None:
        """This rank's shard is written."""
        self._set(f"{n}/shard/{self._rank}", entry_to_json(entry))

    def say_failure(self, n: int, error: TrainerError) -> None:
        """This rank's shard cannot be written."""
        self._set(f"{n}/shard/{self._rank}", _failure(error))

    def shards(self, n: int, own_seconds: float) -> tuple[ShardEntry, ...]:
        """Rank 0: wait for the shards of all ranks, in their order. `own_seconds` is what writing its own took.

        All of them are waited for, also when one has failed: afterwards nobody writes any more, so that what was
        written can be removed.
        """
        end = time.monotonic() + max(self._patience, 10 * own_seconds)
        entries, errors = [], []
        for rank in range(self._world_size):
            try:
                missing = f"the shard of rank {rank} did not come"
                note = self._get(f"{n}/shard/{rank}", missing, end - time.monotonic())
                entries.append(entry_from_json(note, f"rank {rank}'s note"))
            except StorageError as error:
                errors.append(error)
        if errors:
            raise errors[0]
        return tuple(entries)

    def say_outcome(self, n: int, outcome: Outcome) -> None:
        """Rank 0: the save is over."""
        self._set(f"{n}/outcome", dataclasses.asdict(outcome))

    def outcome(self, n: int, own_seconds: float) -> Outcome:
        """Wait for rank 0 to say how the save ended."""
        limit = 3 * max(self._patience, 10 * own_seconds)
        return Outcome(**self._get(f"{n}/outcome", "rank 0 did not say how the checkpoint ended", limit))

    def forget(self, n: int) -> None:
        """Rank 0: nobody reads the notes of save `n` any more."""
        with contextlib.suppress(DistError):  # the store goes with the round
            for key in ("fence", "outcome", *(f"shard/{rank}" for rank in range(self._world_size))):
                self._store.delete_key(f"{n}/{key}")

    def _set(self, key: str, note: dict[str, Any]) -> None:
        try:
            self._store.set(key, json.dumps(note))
        except DistError as error:
            raise _lost(f"the round's store is gone: {error}") from error

    def _get(self, key: str, missing: str, seconds: float) -> dict[str, Any]:
        try:
            self._store.wait([key], timedelta(seconds=max(0.001, seconds)))
            note: dict[str, Any] = json.loads(self._store.get(key))
        except DistError as error:
            raise _lost(f"{missing}: {error}") from error
        if "error" in note:
            raise StorageError(note["reason"], note["error"])
        return note


def join_accord(rank: int, world_size: int, attempt: str) -> Accord:
    """The accord of this round, by a connection of its own to the store that the workers met at. `attempt`: what all
    of them call their meeting, and nobody else who meets at that store."""
    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=_CONNECT)
    return Accord(PrefixStore(f"checkpoint/{attempt}", store), rank, world_size)


def _failure(error: TrainerError) -> dict[str, Any]:
    return {"error": str(error), "reason": error.reason}


def _lost(message: str) -> StorageError:
    return StorageError(names.REASON_STORAGE_UNREACHABLE, message)
