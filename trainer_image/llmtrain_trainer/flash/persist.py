"""Writes what is complete in memory as an ordinary durable checkpoint, without the workers that took it. No torch.

For the tool, and for an agent whose workers are gone and whose pod is about to end. A restore knows no difference from
what `checkpoint.saver` writes. Guarantee: a checkpoint is committed only if every shard was read whole and is of the
one edition, proved where there are checksums, and was still there when it had been written.
Limits: the claim fences everyone who saves there in the same round or before, so it is not for storage to which living
workers save. Shards are written one after the other; one that comes from another member is in memory as a whole
meanwhile. One that lies here is mapped: should a new round make its slot smaller just then, the kernel ends this
process (SIGBUS). Old checkpoints are left for the next save to prune.
"""

from __future__ import annotations

import contextlib
import dataclasses
import mmap
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from llmtrain_operator.contract import names
from llmtrain_trainer.checkpoint.catalog import Catalog, shard_name
from llmtrain_trainer.checkpoint.manifest import Damaged, Manifest, NewerFormat, ShardEntry
from llmtrain_trainer.checkpoint.shardfile import write_shard
from llmtrain_trainer.checkpoint.storage import StorageError
from llmtrain_trainer.errors import TrainerError
from llmtrain_trainer.flash import planner, slot
from llmtrain_trainer.flash.header import Edition, Header
from llmtrain_trainer.flash.planner import Entry, Inventory, Location, Shards
from llmtrain_trainer.flash.protocol import Pass, PeerGone
from llmtrain_trainer.flash.shards import PeerShard, open_local
from llmtrain_trainer.flash.store import Store

_NAMED: Final = 3
"""Editions of which it is told what they lack."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Where shards are: stores on this machine by their members' numbers; `by` lets into the other members'."""

    stores: Mapping[int, Store]
    by: Pass | None = None


@dataclass(frozen=True, slots=True)
class Claimant:
    """Who claims the storage: the job with this UID, in its round of this number (not before that of the snapshots)."""

    job_uid: str
    round: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it ended.

    `edition`: which one it was about, None if memory has none that is complete; `message` says what is missing then.
    `committed`: it is in storage now; `size`: bytes that were written, 0 if it had been there before. `reason`: one of
    `names.REASON_*` if the storage is at fault, with `message` for people. `bad`: where shards could not be had, by the
    locations' names, and why.
    """

    edition: Edition | None
    committed: bool = False
    size: int = 0
    seconds: float = 0.0
    reason: str = ""
    message: str = ""
    bad: Mapping[str, str] = field(default_factory=dict)


def persist_newest(
    memory: Memory, catalog: Catalog, inventories: Sequence[Inventory], claimant: Claimant, step: int | None = None
) -> Outcome:
    """Write the newest edition (of `step`, if given) of which every shard can be had; the next older one if one turns
    out bad. Raises nothing that storage, memory or another member may do."""
    if step is not None:
        inventories = [_only(step, inventory) for inventory in inventories]
    reader = min(memory.stores, default=0)
    bad: dict[str, str] = {}
    while found := planner.newest(inventories, reader, bad):
        outcome = persist(memory, catalog, *found, claimant)
        bad |= outcome.bad
        if outcome.committed or outcome.reason:
            return dataclasses.replace(outcome, bad=bad)
    return Outcome(None, message=lacking(inventories, bad), bad=bad)


def persist(memory: Memory, catalog: Catalog, edition: Edition, shards: Shards, claimant: Claimant) -> Outcome:
    """Write this edition, each rank's shard from the first of its locations that gives it.

    A valid checkpoint of its step that is in storage already stays as it is, and the storage is not claimed.
    """
    began = time.monotonic()
    try:
        catalog.storage.prepare()
        if catalog.checkpoint(edition.step).state == "valid":
            return Outcome(edition, committed=True, message=f"step {edition.step} is in {catalog.storage.uri} already")
        writing = _Writing(memory, catalog, edition, claimant)
        if not writing.write(shards):
            writing.tidy()
            return Outcome(edition, seconds=time.monotonic() - began, bad=writing.bad)
        size = writing.commit()
    except TrainerError as error:
        if error.reason != names.REASON_FENCED:  # else it is no longer ours
            with contextlib.suppress(TrainerError):
                catalog.discard(edition.step)
        return Outcome(edition, seconds=time.monotonic() - began, reason=error.reason, message=str(error))
    return Outcome(edition, committed=True, size=size, seconds=time.monotonic() - began, bad=writing.bad)


def lacking(inventories: Sequence[Inventory], bad: Collection[str] = ()) -> str:
    """Which ranks' shards the newest editions lack, or that there are none. `bad`: as for `planner.newest`. Pure."""
    ranks: dict[Edition, set[int]] = {}
    for inventory in inventories:
        for entry in inventory.entries:
            there = ranks.setdefault(entry.edition, set())
            if Location(inventory.member, inventory.address, entry).name not in bad:
                there.add(entry.rank)
    if not ranks:
        return "there is no snapshot in memory"
    told = []
    for edition in sorted(ranks, reverse=True)[:_NAMED]:
        missing = ", ".join(str(rank) for rank in range(edition.world_size) if rank not in ranks[edition])
        told.append(
            f"of step {edition.step} (round {edition.round}, {edition.world_size} ranks) that of rank {missing}"
        )
    return f"no snapshot in memory is complete: {'; '.join(told)} cannot be had"


def _only(step: int, inventory: Inventory) -> Inventory:
    entries = tuple(entry for entry in inventory.entries if entry.edition.step == step)
    return dataclasses.replace(inventory, entries=entries)


class _Writing:
    """One edition on its way to storage, under a claim of its own. Everything raises what `Catalog` raises."""

    def __init__(self, memory: Memory, catalog: Catalog, edition: Edition, claimant: Claimant) -> None:
        self._memory, self._catalog, self._edition, self._claimant = memory, catalog, edition, claimant
        self._fence = catalog.claim(claimant.job_uid, claimant.round)
        with contextlib.suppress(StorageError):  # what a killed save left may take the room
            catalog.clear()
        self._entries: list[ShardEntry] = []
        self._state: dict[str, Any] = {}
        self.bad: dict[str, str] = {}

    def write(self, shards: Shards) -> bool:
        """Whether every rank's shard is in storage; if not, `bad` says why."""
        return all(self._write_one(rank, locations) for rank, locations in enumerate(shards))

    def commit(self) -> int:
        """Make it a checkpoint; bytes of all shards."""
        manifest = Manifest(
            step=self._edition.step,
            fence=self._fence,
            job_uid=self._claimant.job_uid,
            round=self._edition.round,
            world_size=self._edition.world_size,
            created=time.time(),
            shards=tuple(self._entries),
            state=self._state,
        )
        self._catalog.commit(manifest)
        return manifest.size

    def tidy(self) -> None:
        """Remove what was written: it will not be committed."""
        with contextlib.suppress(StorageError):
            self._catalog.discard(self._edition.step)

    def _write_one(self, rank: int, locations: Sequence[Location]) -> bool:
        for location in locations:
            try:
                self._entries.append(self._from(rank, location))
            except (Damaged, NewerFormat, PeerGone, OSError) as error:
                self.bad[location.name] = f"{location.name}: {error}"
            else:
                return True
        return False

    def _from(self, rank: int, location: Location) -> ShardEntry:
        """Raises what tells that the shard cannot be had from there."""
        here = self._memory.stores.get(-1 if location.member is None else location.member)
        header, data = self._mapped(here, location.entry) if here else self._fetched(location)
        if (header.edition, header.rank, header.fixed.job_uid) != (self._edition, rank, self._claimant.job_uid):
            raise Damaged(location.entry.stem, "it is another snapshot than was announced")
        name = shard_name(self._edition.step, self._fence, rank)
        entry = write_shard(self._catalog.storage, name, header.fixed.segments, data, {"rng": header.rng})
        if here:
            open_local(here, location.entry)  # raises if a worker took the slot for its next snapshot meanwhile
        if rank == 0:
            self._state = header.state
        return entry

    def _mapped(self, store: Store, entry: Entry) -> tuple[Header, memoryview]:
        """A snapshot on this machine, proved, where it lies."""
        shard = open_local(store, entry)
        if wrong := shard.damage():
            raise Damaged(shard.name, "; ".join(wrong))
        with (store.root / entry.stem).with_suffix(slot.DATA).open("rb") as file:
            try:
                mapping = mmap.mmap(file.fileno(), shard.size, access=mmap.ACCESS_READ) if shard.size else b""
            except ValueError as error:
                raise Damaged(shard.name, "its memory was given back meanwhile") from error
        return shard.header, memoryview(mapping)

    def _fetched(self, location: Location) -> tuple[Header, memoryview]:
        """One in another member's memory, proved, in a copy."""
        if not self._memory.by or not location.address:
            raise PeerGone("nothing lets into its memory")
        shard = PeerShard(location.address, self._memory.by, location.entry)
        with contextlib.closing(shard):
            data = memoryview(mmap.mmap(-1, shard.size) if shard.size else b"")
            shard.read_into(0, data)
        return shard.header, data
