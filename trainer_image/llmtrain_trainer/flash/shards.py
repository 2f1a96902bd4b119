"""Reading a snapshot's bytes, from this pod's memory or another's; what is read from another is always proved."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

from llmtrain_trainer.checkpoint.chunks import Chunks
from llmtrain_trainer.checkpoint.layout import Segment
from llmtrain_trainer.checkpoint.manifest import Damaged
from llmtrain_trainer.flash import header as headers
from llmtrain_trainer.flash import protocol, slot
from llmtrain_trainer.flash.header import CHUNK, Header
from llmtrain_trainer.flash.planner import Entry
from llmtrain_trainer.flash.protocol import Pass
from llmtrain_trainer.flash.slot import Held
from llmtrain_trainer.flash.store import Store


class LocalShard(Chunks):
    """A snapshot in this pod. Without checksums yet, its head vouches for it: it was published complete."""

    def __init__(self, held: Held, view: memoryview | None = None, like: LocalShard | None = None) -> None:
        """`view`: its data, if they are mapped already. Raises `Damaged`."""
        self.held, self.header, self.segments = held, held.header, held.header.fixed.segments
        self._view = slot.view(held.stem) if view is None else view
        if len(self._view) < self.header.size:
            raise Damaged(held.name, f"its data ends {self.header.size - len(self._view)} bytes early")
        self._sums: list[str] | None = like._sums if like else slot.sums(held)
        super().__init__(held.name, held.header.size, CHUNK, self._sums, self._copy)

    def again(self) -> LocalShard:
        """Another reader of it, for another thread."""
        return LocalShard(self.held, self._view, self)

    def _copy(self, offset: int, into: memoryview) -> int:
        count = min(len(into), max(0, len(self._view) - offset))
        slot.copy(self._view[offset : offset + count], into[:count])
        return count


class PeerShard(Chunks):
    """A snapshot in the memory of another member, through its agent, by a connection of its own."""

    def __init__(self, address: str, by: Pass, entry: Entry, like: PeerShard | None = None) -> None:
        """Raises `Damaged`, `NewerFormat`, `PeerGone`."""
        self._address, self._by, self._entry = address, by, entry
        self._link = protocol.call(address, by)
        name = f"{entry.stem} at {address}"
        with protocol.as_gone(address):
            wish = {"do": "open", "stem": entry.stem, "mark": entry.mark, "known": like is not None}
            protocol.send(self._link, wish)
            found = protocol.receive(self._link)
            if "error" in found:
                raise Damaged(name, found["error"])
            data = protocol.exactly(self._link, found["head"])
        self.header: Header = like.header if like else headers.decode(data, name)
        self.segments: Sequence[Segment] = self.header.fixed.segments
        self._sums: list[str] = like._sums if like else found["chunks"]
        super().__init__(name, self.header.size, CHUNK, self._sums, self._ask)

    def again(self) -> PeerShard:
        """Another reader of it, for another thread."""
        return PeerShard(self._address, self._by, self._entry, self)

    def close(self) -> None:
        """Give the connection back."""
        self._link.close()

    def __del__(self) -> None:
        link: socket.socket | None = getattr(self, "_link", None)
        if link is not None:
            link.close()

    def _fetch_run(self, number: int, into: memoryview) -> None:
        """Asked for at once, and proved chunk by chunk as they come."""
        with protocol.as_gone(self._address):
            left = self._begin(number * self.chunk, len(into))
            for at in range(0, len(into), self.chunk):
                part = into[at : at + self.chunk]
                if left < len(part):
                    raise Damaged(self.name, f"it ends {len(into) - at - left} bytes early")
                protocol.receive_into(self._link, part)
                left -= len(part)
                self._prove(number + at // self.chunk, part)

    def _begin(self, offset: int, length: int) -> int:
        """Ask for bytes; how many will come."""
        protocol.send(self._link, {"do": "read", "offset": offset, "length": length})
        answer: dict[str, Any] = protocol.receive(self._link)
        return int(answer["length"])

    def _ask(self, offset: int, into: memoryview) -> int:
        with protocol.as_gone(self._address):
            count = self._begin(offset, len(into))
            protocol.receive_into(self._link, into[:count])
        return count


def open_local(store: Store, entry: Entry) -> LocalShard:
    """The snapshot of an inventory's entry. Raises `Damaged` if it is no longer the same."""
    stem = store.root / entry.stem
    held = slot.held(stem)
    if held is None or held.mark != entry.mark:
        raise Damaged(entry.stem, "it is no longer there")
    return LocalShard(held, store.mapped(stem))
