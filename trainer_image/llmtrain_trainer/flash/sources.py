"""The shards of one edition, opened wherever the planner found them."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from llmtrain_trainer.checkpoint import filling
from llmtrain_trainer.checkpoint.layout import LayoutError, Segment
from llmtrain_trainer.checkpoint.manifest import Damaged, Manifest, NewerFormat, ShardEntry
from llmtrain_trainer.checkpoint.pieces import Piece
from llmtrain_trainer.checkpoint.shardfile import ShardReader
from llmtrain_trainer.checkpoint.storage import Storage, StorageError
from llmtrain_trainer.flash.header import Edition
from llmtrain_trainer.flash.planner import Location, Shards
from llmtrain_trainer.flash.protocol import Pass, PeerGone
from llmtrain_trainer.flash.shards import LocalShard, PeerShard, open_local
from llmtrain_trainer.flash.store import Store

T = TypeVar("T")


class BadSource(Exception):  # noqa: N818 - it says what happened
    """A shard cannot be had from where the planner took it."""

    def __init__(self, location: Location, why: object) -> None:
        super().__init__(f"{location.name}: {why}")
        self.location = location


@dataclass(frozen=True, slots=True)
class Backing:
    """A checkpoint in durable storage: of the same edition, its shards are as good as those in memory."""

    storage: Storage
    manifest: Manifest

    @property
    def edition(self) -> Edition:
        """What it is of."""
        return Edition(self.manifest.step, self.manifest.round, self.manifest.world_size)


class Sources:
    """For one reader. `member`: the reader's own, whose store is `store`; `by` lets it into the others'."""

    def __init__(self, shards: Shards, store: Store, member: int, by: Pass, backing: Backing | None) -> None:
        self._shards, self._store, self._member, self._by, self._backing = shards, store, member, by, backing
        self.used: set[Location] = set()
        self._opened: dict[tuple[int, bool], _Inner] = {}
        self._lock = threading.Lock()

    def state(self) -> dict[str, Any]:
        """What is the same on every rank. Raises `BadSource`."""
        location = self._shards[0][0]
        if location.member is None and self._backing:
            return self._backing.manifest.state
        inner = self._open(0).inner
        if isinstance(inner, ShardReader):
            raise AssertionError("a manifest was at hand")  # noqa: TRY004 - a fault of ours, not of an argument
        return inner.header.state

    def rng(self, rank: int) -> dict[str, Any]:
        """A rank's generators. Raises `BadSource`."""
        inner = self._open(rank).inner
        found: dict[str, Any] = inner.extras["rng"] if isinstance(inner, ShardReader) else inner.header.rng
        return found

    def fill(self, pieces: list[Piece], rank: int) -> None:
        """Fill a rank's pieces, from its own shard alone if that has them all. Raises `BadSource`, `LayoutError`."""
        ranks: list[int] = list(range(len(self._shards)))
        if rank in ranks:
            try:
                self._fill([rank], pieces)
            except LayoutError:  # before anything was read
                pass
            else:
                return
        self._fill(ranks, pieces)

    def _fill(self, ranks: Sequence[int], pieces: list[Piece]) -> None:
        # From memory it is the cores that count, from other members and storage the streams.
        is_local = all(self._shards[each][0].member == self._member for each in ranks)
        threads = min(filling.STREAMS, torch.get_num_threads()) if is_local else filling.STREAMS
        shards = [functools.partial(self._open, each) for each in ranks]
        shards += [functools.partial(self._open, each, frozen=True) for each in ranks if self._frozen(each)]
        filling.fill(shards, pieces, threads=threads)

    def _frozen(self, rank: int) -> ShardEntry | None:
        """The other part of a rank's shard; a snapshot in memory is one piece."""
        stored = self._shards[rank][0].member is None and self._backing
        return stored.manifest.shards[rank].frozen if stored else None

    def _open(self, rank: int, *, frozen: bool = False) -> _Guarded:
        location = self._shards[rank][0]
        with self._lock:  # the first one reads head and checksums for all
            first = self._opened.get((rank, frozen))
            if first is None:
                self._opened[rank, frozen] = shard = _guard(location, lambda: self._reader(location, rank, frozen))
            self.used.add(location)
        if first is not None:
            shard = _guard(
                location,
                lambda: self._reader(location, rank, frozen) if isinstance(first, ShardReader) else first.again(),
            )
        return _Guarded(location, shard)

    def _reader(self, location: Location, rank: int, frozen: bool) -> _Inner:
        if location.member is None:
            if self._backing is None:
                raise AssertionError("the planner was told of no durable checkpoint")
            entry = self._frozen(rank) if frozen else self._backing.manifest.shards[rank]
            if entry is None:
                raise AssertionError("there is no such part")
            return ShardReader(self._backing.storage, entry)
        if location.member == self._member:
            return open_local(self._store, location.entry)
        if not location.address:
            raise PeerGone("its agent hands out nothing")
        return PeerShard(location.address, self._by, location.entry)


_Inner = LocalShard | PeerShard | ShardReader


class _Guarded:
    """A shard whose failures tell where it was taken from."""

    def __init__(self, location: Location, inner: _Inner) -> None:
        self._location, self.inner = location, inner
        self.segments: tuple[Segment, ...] = tuple(inner.segments)

    def read_into(self, offset: int, into: memoryview) -> None:
        _guard(self._location, lambda: self.inner.read_into(offset, into))


def _guard(location: Location, do: Callable[[], T]) -> T:
    try:
        return do()
    except (Damaged, NewerFormat, PeerGone, StorageError, OSError) as error:
        raise BadSource(location, error) from error
