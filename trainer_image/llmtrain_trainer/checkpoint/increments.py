"""What has not changed since the last save of the round is not written again: frozen weights, most of all.

With adapters (LoRA) or a frozen backbone nearly all bytes of a checkpoint are the same every time. A rank's frozen part
then lies in a file of its own, which later manifests name too. Guarantee: a file is named again only if it holds, by
the digests of all its chunks, exactly what would be written, and was named by a committed checkpoint of this round; so
a round shares nothing with earlier ones, and damage to one file reaches no further than the round that wrote it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from llmtrain_operator.contract import names
from llmtrain_trainer.checkpoint.accord import Outcome
from llmtrain_trainer.checkpoint.layout import Segment
from llmtrain_trainer.checkpoint.manifest import ShardEntry
from llmtrain_trainer.checkpoint.pieces import WEIGHTS
from llmtrain_trainer.checkpoint.shardfile import entry_of, write_shard
from llmtrain_trainer.checkpoint.storage import Storage
from llmtrain_trainer.checkpoint.stored import frozen_name, shard_name
from llmtrain_trainer.checkpoint.throttle import Throttle

_WORTH: Final = 2**20
"""Bytes of frozen weights below which a second file is not worth its request."""


@dataclass(frozen=True, slots=True)
class Where:
    """Whose shard it is: of which step, under which claim, of which rank."""

    step: int
    fence: int
    rank: int


class Increments:
    """One rank's shards in a round, one save after the other."""

    def __init__(self, throttle: Throttle) -> None:
        self._throttle = throttle
        self._named: ShardEntry | None = None
        self._new: ShardEntry | None = None

    def write(
        self, storage: Storage, where: Where, segments: Sequence[Segment], data: memoryview, extras: dict[str, Any]
    ) -> ShardEntry:
        """Write what has to be written; what the manifest has to say of it. Arguments as for `write_shard`."""
        self._new = None
        name = shard_name(where.step, where.fence, where.rank)
        cut = frozen_from(segments)
        if cut is None:
            return write_shard(storage, name, segments, data, extras, throttle=self._throttle)
        moving = [segment for segment in segments if segment.offset < cut]
        frozen = [dataclasses.replace(each, offset=each.offset - cut) for each in segments if each.offset >= cut]
        self._new = self._write_frozen(storage, where, frozen, data[cut:])
        entry = write_shard(storage, name, moving, data[:cut], extras, throttle=self._throttle)
        return dataclasses.replace(entry, frozen=self._new)

    def settle(self, outcome: Outcome) -> None:
        """How the save of the last `write` ended."""
        if outcome.committed:
            self._named = self._new
        elif outcome.reason == names.REASON_STORAGE_MISSING:
            self._named = None  # it may be what is missing

    def _write_frozen(
        self, storage: Storage, where: Where, segments: Sequence[Segment], data: memoryview
    ) -> ShardEntry:
        if self._named is not None and entry_of(self._named.name, segments, data, {}) == self._named:
            return self._named
        name = frozen_name(where.step, where.fence, where.rank)
        return write_shard(storage, name, segments, data, {}, throttle=self._throttle)


def frozen_from(segments: Sequence[Segment]) -> int | None:
    """The byte of the data where frozen weights begin that go on to its end; None if that is not worth a file. Pure."""
    frozen = [segment for segment in segments if segment.kind == WEIGHTS]
    if sum(segment.length for segment in frozen) < _WORTH:
        return None
    cut = min(segment.offset for segment in frozen)
    others = (segment.end for segment in segments if segment.kind != WEIGHTS)
    return cut if max(others, default=0) <= cut else None
