"""What members hold: this pod's store, or another's as its agent tells it."""

from __future__ import annotations

from typing import Any

from llmtrain_trainer.flash import protocol, slot
from llmtrain_trainer.flash.header import Edition
from llmtrain_trainer.flash.planner import Entry, Inventory
from llmtrain_trainer.flash.protocol import Pass, PeerGone
from llmtrain_trainer.flash.store import Store


def survey(store: Store, member: int, address: str = "") -> Inventory:
    """What lies in a store on this machine. `address`: where its agent hands it out to others."""
    found, damaged = store.scan()
    entries = tuple(
        Entry(held.header.edition, held.header.rank, held.stem.name, held.mark, slot.has_sums(held)) for held in found
    )
    return Inventory(member, address, entries, store.durable_step, tuple(map(str, damaged)))


def ask(address: str, by: Pass, member: int) -> Inventory:
    """What another member holds, by its agent's account. Raises `PeerGone`."""
    with protocol.call(address, by) as link, protocol.as_gone(address):
        protocol.send(link, {"do": "list"})
        entries = tuple(_entry(raw) for raw in protocol.receive(link).get("entries", ()))
    return Inventory(member, address, entries)


def told(inventory: Inventory) -> dict[str, Any]:
    """The answer that `ask` reads."""
    return {
        "entries": [
            [
                entry.edition.step,
                entry.edition.round,
                entry.edition.world_size,
                entry.rank,
                entry.stem,
                entry.mark,
                entry.proved,
            ]
            for entry in inventory.entries
        ]
    }


def _entry(raw: Any) -> Entry:
    match raw:
        case [int(step), int(number), int(world), int(rank), str(stem), str(mark), bool(proved)]:
            return Entry(Edition(step, number, world), rank, stem, mark, proved)
    raise PeerGone(f"{raw!r} is no entry of an inventory")
