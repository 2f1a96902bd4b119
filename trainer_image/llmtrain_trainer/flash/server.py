"""Hands out a pod's snapshots to other members, and takes in their copies. Threads of the agent.

Guarantee: a copy is published only when every byte has come with its checksum; whoever breaks off, or is killed, leaves
what was there before.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from llmtrain_trainer.checkpoint.manifest import Damaged, NewerFormat, digest
from llmtrain_trainer.flash import header as headers
from llmtrain_trainer.flash import protocol, slot
from llmtrain_trainer.flash.header import CHUNK, Header
from llmtrain_trainer.flash.protocol import PeerGone
from llmtrain_trainer.flash.slot import Held, Slot, StoreFull
from llmtrain_trainer.flash.store import Store
from llmtrain_trainer.flash.survey import survey, told

log = logging.getLogger(__name__)

_IDLE: Final = 600.0
"""Seconds without a word after which a connection is closed: a reader may take its time, but its node may be gone."""
COPIES: Final = 3
"""Slots for each rank of another member: committed, the one after it, and the one that is coming in."""


class Server:
    """Listens on a port of its own choice. `key_of`: the key of a round that this member is in, None for others."""

    def __init__(self, store: Store, host: str, key_of: Callable[[int], str | None]) -> None:
        self._store, self._key_of = store, key_of
        self._replicas = Replicas(store)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.create_server((host, 0), family=family, backlog=256)
        self.port: int = self._socket.getsockname()[1]

    def start(self) -> None:
        """Serve until the process ends, or `close`."""
        threading.Thread(target=self._accept, name="flash-server", daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                link, address = self._socket.accept()
                threading.Thread(target=self._serve, args=(link, address[0]), name="flash-peer", daemon=True).start()

    def _serve(self, link: socket.socket, who: str) -> None:
        with link:
            try:
                number = protocol.admit(link, self._key_of)
                if number is None:
                    log.info("refused %s: it is in another round", who)
                    return
                self._converse(link, number)
            except (PeerGone, OSError, ValueError, KeyError) as error:
                log.debug("connection of %s ended: %s", who, error)

    def _converse(self, link: socket.socket, number: int) -> None:
        reading: Held | None = None
        link.settimeout(_IDLE)
        while True:
            asked = protocol.receive(link)
            match asked.get("do"):
                case "open":
                    reading = self._open(link, asked)
                case "read" if reading:
                    _hand_out(link, reading, int(asked["offset"]), int(asked["length"]))
                case "list":
                    protocol.send(link, told(survey(self._store, 0)))
                case "put" if self._key_of(number) is not None:
                    link.settimeout(protocol.TIMEOUT)
                    self._replicas.take_in(link, asked, number, lambda: self._key_of(number) is not None)
                    link.settimeout(_IDLE)
                case _:
                    return

    def _open(self, link: socket.socket, asked: dict[str, Any]) -> Held | None:
        """Answer with head and checksums, unless they are known; the reader proves with them what it reads."""
        stem, mark = str(asked["stem"]), str(asked["mark"])
        try:
            held = slot.held(self._store.root / stem) if "/" not in stem else None
            digests = slot.prove(held) if held and held.mark == mark else None
        except (Damaged, NewerFormat, FileNotFoundError) as error:
            protocol.send(link, {"error": str(error)})
            return None
        if held is None or digests is None:
            protocol.send(link, {"error": "it is no longer there"})
            return None
        is_known = bool(asked.get("known"))
        head = b"" if is_known else held.stem.with_suffix(slot.HEAD).read_bytes()
        protocol.send(link, {"head": len(head), "chunks": [] if is_known else digests}, head)
        return held


def _hand_out(link: socket.socket, held: Held, offset: int, length: int) -> None:
    """Straight from the store's memory; who reads proves it."""
    with held.stem.with_suffix(slot.DATA).open("rb", buffering=0) as file:
        count = max(0, min(length, os.fstat(file.fileno()).st_size - offset))
        protocol.send(link, {"length": count})
        if count and link.sendfile(file, offset, count) < count:
            raise PeerGone("the snapshot became shorter while it was read")


class Replicas:
    """Copies of other members' snapshots, in this pod's store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._copies: dict[tuple[int, int], list[_Copy]] = {}
        self._lock = threading.Lock()

    def take_in(self, link: socket.socket, asked: dict[str, Any], number: int, is_current: Callable[[], bool]) -> None:
        """One copy, sent by a member of round `number`; answers how it ended.

        `is_current`: whether this member is still in that round. In a later one the copy would be nobody's.
        """
        head = protocol.exactly(link, int(asked["head"]))
        protocol.yield_to_training()
        header = headers.decode(head, "a peer's snapshot")
        if header.edition.round != number:
            raise ValueError("a snapshot of another round")
        copy = self._begin(header)
        if copy is None:
            protocol.send(link, {"ok": False, "error": "the last copy is still coming in"})
            return
        if not copy.busy:
            protocol.send(link, {"ok": True, "there": True})
            return
        try:
            if self._fill(link, copy.slot, header, head, is_current):
                copy.step = header.edition.step
                protocol.send(link, {"ok": True})
        finally:
            # What stays mapped stays charged, also when its files are gone.
            copy.slot = Slot(copy.slot.stem)
            copy.busy = False

    def _fill(
        self, link: socket.socket, room: Slot, header: Header, head: bytes, is_current: Callable[[], bool]
    ) -> bool:
        """Whether it has come whole; if not, the sender knows why."""
        try:
            room.withdraw()
            room.reserve(header.size)
        except StoreFull as full:
            protocol.send(link, {"ok": False, "error": f"no room for a copy: {full}"})
            return False
        protocol.send(link, {"ok": True})
        digests = _receive(link, room.memory[: header.size])
        end = protocol.receive(link)
        if end.get("chunks") != digests:
            protocol.send(link, {"ok": False, "error": str(end.get("error") or "other bytes came than were sent")})
            return False
        if not is_current():
            slot.remove(room.stem)
            protocol.send(link, {"ok": False, "error": "the round is over"})
            return False
        try:
            slot.put_sums(room.publish(header, head), digests)
        except StoreFull as full:
            room.withdraw()
            protocol.send(link, {"ok": False, "error": f"no room for a copy's head: {full}"})
            return False
        return True

    def _begin(self, header: Header) -> _Copy | None:
        """The one that is there already, not busy; or the one to overwrite, busy from now on.

        That is never one of the two newest, of which one may be committed and the other about to be. Those of earlier
        rounds are given up by the workers, in their time.
        """
        edition = header.edition
        with self._lock:
            copies = self._copies.get((edition.round, header.rank))
            if copies is None:
                copies = [_Copy(self._store.replica(edition, header.rank, number)) for number in range(COPIES)]
                self._copies = {key: kept for key, kept in self._copies.items() if key[0] >= edition.round - 1}
                self._copies[edition.round, header.rank] = copies
            for copy in copies:
                if copy.step == edition.step and self._store.holds(copy.slot, edition):
                    return copy
            newest = sorted(copies, key=lambda copy: copy.step)[1 - COPIES :]
            # Busy is also a connection that broke, until it is emptied.
            room = next((copy for copy in copies if not copy.busy and (copy.step < 0 or copy not in newest)), None)
            if room is not None:
                room.step, room.busy = -1, True
            return room


@dataclass(slots=True)
class _Copy:
    slot: Slot
    step: int = -1
    busy: bool = False


def _receive(link: socket.socket, into: memoryview) -> list[str]:
    """Fill `into`; the checksums of its chunks, taken while they are in the cache."""
    digests = []
    for start in range(0, len(into), CHUNK):
        part = into[start : start + CHUNK]
        protocol.receive_into(link, part)
        digests.append(digest(part))
    return digests
