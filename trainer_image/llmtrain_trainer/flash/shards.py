"""Reading a snapshot's bytes, from this pod's memory or another's; what is read from another is always proved."""

from __future__ import annotations

import functools
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

    def __init__(self, held: Held) -> None:
        """Raises `Damaged`."""
        self.header, self.segments = held.header, held.header.fixed.segments
        fetch = functools.partial(slot.read_into, held)
        super().__init__(held.name, held.header.size, CHUNK, slot.sums(held), fetch)


class PeerShard(Chunks):
    """A snapshot in the memory of another member, through its agent, by a connection of its own."""

    def __init__(self, address: str, by: Pass, entry: Entry) -> None:
        """Raises `Damaged`, `NewerFormat`, `PeerGone`."""
        self._address = address
        self._link = protocol.call(address, by)
        name = f"{entry.stem} at {address}"
        with protocol.as_gone(address):
            protocol.send(self._link, {"do": "open", "stem": entry.stem, "mark": entry.mark})
            found = protocol.receive(self._link)
            if "error" in found:
                raise Damaged(name, found["error"])
            data = protocol.exactly(self._link, found["head"])
        self.header: Header = headers.decode(data, name)
        self.segments: Sequence[Segment] = self.header.fixed.segments
        super().__init__(name, self.header.size, CHUNK, found["chunks"], self._ask)

    def close(self) -> None:
        """Give the connection back."""
        self._link.close()

    def __del__(self) -> None:
        link: socket.socket | None = getattr(self, "_link", None)
        if link is not None:
            link.close()

    def _ask(self, offset: int, into: memoryview) -> int:
        with protocol.as_gone(self._address):
            protocol.send(self._link, {"do": "read", "offset": offset, "length": len(into)})
            answer: dict[str, Any] = protocol.receive(self._link)
            count = int(answer["length"])
            protocol.receive_into(self._link, into[:count])
        return count


def open_local(store: Store, entry: Entry) -> LocalShard:
    """The snapshot of an inventory's entry. Raises `Damaged` if it is no longer the same."""
    stem = store.root / entry.stem
    held = slot.held(stem)
    if held is None or held.mark != entry.mark:
        raise Damaged(entry.stem, "it is no longer there")
    return LocalShard(held)
