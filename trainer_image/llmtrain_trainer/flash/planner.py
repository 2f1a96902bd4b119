"""From which member's memory each shard of which snapshot comes. Pure.

All workers plan on the same inventories, so that they decide alike. A shard is taken where it costs least: the
reader's own pod, then another member's memory, then durable storage if that holds the same edition; of several members
that have it, readers spread over them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from llmtrain_operator.contract.wire import Avoid
from llmtrain_trainer.flash.header import Edition


@dataclass(frozen=True, slots=True)
class Entry:
    """A snapshot that a member holds: of `rank`, in `stem` of its store; `mark` is its head's digest.

    `proved`: it has checksums. One without is new, and its head alone vouches for it.
    """

    edition: Edition
    rank: int
    stem: str
    mark: str
    proved: bool = True


@dataclass(frozen=True, slots=True)
class Inventory:
    """What a member holds. `address`: host:port of its agent, empty if it hands out nothing.

    `durable`: newest step that it knows to be in durable storage. `damaged`: what is there and of no use, each as
    `NAME: why`.
    """

    member: int
    address: str
    entries: tuple[Entry, ...]
    durable: int = -1
    damaged: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Location:
    """Where a shard can be had. `member` None: in durable storage."""

    member: int | None
    address: str
    entry: Entry

    @property
    def name(self) -> str:
        """For messages, and to tell a location that turned out bad."""
        where = "durable storage" if self.member is None else f"the memory of member {self.member}"
        edition, copy = self.entry.edition, f" ({self.entry.stem})" if self.entry.stem else ""
        return f"step {edition.step} (round {edition.round}) of rank {self.entry.rank} in {where}{copy}"


Shards = tuple[tuple[Location, ...], ...]
"""For each rank of an edition's world where its shard can be had, the best first."""


def newest(
    inventories: Sequence[Inventory], reader: int, bad: Collection[str] = (), durable: Edition | None = None
) -> tuple[Edition, Shards] | None:
    """The newest edition of which every shard can be had, and where `reader` (a member) gets them; None: there is none.

    `bad`: names of locations that turned out damaged or unreachable. `durable`: an edition in durable storage, from
    which shards that are nowhere in memory may come.
    """
    at: dict[Edition, dict[int, list[Location]]] = {}
    for inventory in inventories:
        for entry in inventory.entries:
            location = Location(inventory.member, inventory.address, entry)
            if location.name not in bad:
                at.setdefault(entry.edition, {}).setdefault(entry.rank, []).append(location)
    for edition in sorted(at, reverse=True):
        found = [_ordered(at[edition].get(rank, ()), reader) for rank in range(edition.world_size)]
        if edition == durable:
            stored = [Location(None, "", Entry(edition, rank, "", "")) for rank in range(edition.world_size)]
            found = [(*here, there) for here, there in zip(found, stored, strict=True) if there.name not in bad]
        if len(found) == edition.world_size and all(found):
            return edition, tuple(found)
    return None


def allowed(inventories: Iterable[Inventory], avoid: Avoid) -> list[Inventory]:
    """Without what training was rolled back from."""
    return [
        replace(each, entries=tuple(e for e in each.entries if not avoid.voids(e.edition.step, e.edition.round)))
        for each in inventories
    ]


def durable_step(inventories: Iterable[Inventory]) -> int:
    """The newest step that any member knows to be in durable storage, -1 if none does."""
    return max((inventory.durable for inventory in inventories), default=-1)


def _ordered(locations: Iterable[Location], reader: int) -> tuple[Location, ...]:
    """Those with checksums first, of these the reader's own. One that it cannot get at is not left out, but tried: that
    all plan alike."""
    found = list(locations)
    turn = max(1, len(found))

    def cost(location: Location) -> tuple[bool, bool, int]:
        is_own = location.member == reader
        return not location.entry.proved, not is_own, ((location.member or 0) - reader) % turn

    return tuple(sorted(found, key=cost))
