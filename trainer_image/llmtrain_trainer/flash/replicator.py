"""Makes a worker's snapshots safe: copies them to buddies, and says so. Threads of the agent.

Off the training path: the worker neither waits nor knows how long it takes; a buddy that is slow or gone is left for
the next one on the list. Guarantee: what is acknowledged lies complete and proved in as many other members' memory as
the acknowledgement says.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from llmtrain_trainer.checkpoint.manifest import Damaged, NewerFormat, digest
from llmtrain_trainer.flash import protocol, slot
from llmtrain_trainer.flash.header import CHUNK
from llmtrain_trainer.flash.notices import Notice
from llmtrain_trainer.flash.protocol import Pass, PeerGone
from llmtrain_trainer.flash.slot import Held
from llmtrain_trainer.flash.store import Ack, Store

log = logging.getLogger(__name__)

_BLOCK: Final = 4 * CHUNK
"""Bytes that are read, proved and sent at a time: they stay in a core's cache meanwhile."""
_PAUSE: Final = 1.0
"""Seconds after which buddies that could not take a copy are asked again."""
_SLOWEST: Final = 200e6
"""Bytes per second at which a buddy has the memory for a copy, at least."""


@dataclass(frozen=True, slots=True)
class Circle:
    """The round as a replicator sees it: addresses of possible buddies, the best first, with their members' ranks; and
    how many copies to make."""

    by: Pass
    buddies: Mapping[str, int]
    copies: int


class Replicator:
    """One worker's. `assign` begins a round; `tell` asks for a copy."""

    def __init__(self, store: Store, local_rank: int) -> None:
        self._store, self._local_rank = store, local_rank
        self._news: queue.SimpleQueue[Notice | None] = queue.SimpleQueue()
        self._circle: Circle | None = None
        self._links: dict[str, socket.socket] = {}
        self.trouble = ""
        threading.Thread(target=self._run, name=f"flash-replicator-{local_rank}", daemon=True).start()

    def assign(self, circle: Circle) -> None:
        """From now on snapshots of this round are copied, to these buddies."""
        self._circle = circle

    def tell(self, notice: Notice) -> None:
        """The newest wish of the worker."""
        self._news.put(notice)

    def _run(self) -> None:
        protocol.yield_to_training()
        notice: Notice | None = None
        done: Notice | None = None
        while True:
            notice = self._next(wait=None if notice in (None, done) else _PAUSE) or notice
            circle = self._circle
            if notice is None or notice == done or circle is None or circle.by.round != notice.round:
                continue
            try:
                if self._make_safe(notice, circle):
                    done = notice
            except (OSError, slot.StoreFull) as error:  # tried again: without this thread nothing is ever safe
                self._complain(str(error))

    def _next(self, wait: float | None) -> Notice | None:
        newest = None
        with contextlib.suppress(queue.Empty):
            newest = self._news.get(timeout=wait)
            while True:
                newest = self._news.get_nowait()
        return newest

    def _make_safe(self, notice: Notice, circle: Circle) -> bool:
        try:
            held = slot.held(self._store.root / notice.stem)
            if held is None or held.header.edition.step != notice.step:
                return True  # overwritten: the worker has another wish by now
            kept_by = self._copy(held, circle)
        except (Damaged, NewerFormat) as error:  # the worker asks again, with a new head
            self._complain(str(error))
            return False
        if len(kept_by) < circle.copies or (not circle.copies and slot.compute(held) is None):
            return False
        self._store.say(self._local_rank, Ack(notice.round, notice.step, kept_by))
        self.trouble = ""
        return True

    def _copy(self, held: Held, circle: Circle) -> tuple[int, ...]:
        """The ranks of those who have it now."""
        made: list[int] = []
        for address, rank in circle.buddies.items():
            if len(made) == circle.copies:
                break
            try:
                self._send(held, address, circle.by)
                made.append(rank)
            except PeerGone as error:
                self._drop(address)
                self._complain(str(error))
        return tuple(made)

    def _send(self, held: Held, address: str, by: Pass) -> None:
        """Raises `PeerGone` also if the buddy has no room."""
        link = self._link(address, by)
        with protocol.as_gone(address):
            head = held.stem.with_suffix(slot.HEAD).read_bytes()
            protocol.send(link, {"do": "put", "head": len(head), "size": held.header.size}, head)
            # The first time it has to find the memory.
            link.settimeout(protocol.TIMEOUT + held.header.size / _SLOWEST)
            answer = protocol.receive(link)
            link.settimeout(protocol.TIMEOUT)
            _expect_ok(answer, address)
            if answer.get("there"):
                return
            digests = _stream(link, held)
            if not held.stands:
                protocol.send(link, {"error": "the snapshot was overwritten meanwhile"})
                protocol.receive(link)
                raise PeerGone(f"{held.name} was overwritten while it was sent")
            protocol.send(link, {"chunks": digests})
            _expect_ok(protocol.receive(link), address)
        if held.stands:
            slot.put_sums(held, digests)

    def _link(self, address: str, by: Pass) -> socket.socket:
        key = f"{by.round} {address}"
        if key not in self._links:
            for old in [old for old in self._links if not old.startswith(f"{by.round} ")]:
                self._links.pop(old).close()
            self._links[key] = protocol.call(address, by)
        return self._links[key]

    def _drop(self, address: str) -> None:
        for key in [key for key in self._links if key.endswith(f" {address}")]:
            self._links.pop(key).close()

    def _complain(self, trouble: str) -> None:
        if trouble != self.trouble:
            self.trouble = trouble
            log.warning("worker %s: no copy: %s", self._local_rank, trouble)


def _expect_ok(answer: dict[str, object], address: str) -> None:
    if not answer.get("ok"):
        raise PeerGone(f"{address}: {answer.get('error')}")


def _stream(link: socket.socket, held: Held) -> list[str]:
    """Send the data; the checksums of its chunks."""
    room = memoryview(bytearray(_BLOCK))
    digests: list[str] = []
    for start in range(0, held.header.size, _BLOCK):
        block = room[: min(_BLOCK, held.header.size - start)]
        if slot.read_into(held, start, block) < len(block):
            raise PeerGone(f"{held.name} went away while it was sent")
        digests += (digest(block[at : at + CHUNK]) for at in range(0, len(block), CHUNK))
        link.sendall(block)
    return digests
