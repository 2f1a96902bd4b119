"""What a worker and its agent say to each other about snapshots. Neither waits for the other.

The worker sends the agent a datagram for each snapshot that is to be made safe; the agent answers by a small file in
the store. Without an agent of ours (a plain torchrun) a snapshot is as safe as it gets when it is published.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from dataclasses import dataclass
from typing import Final

from llmtrain_operator.contract import names
from llmtrain_trainer.flash.slot import Held
from llmtrain_trainer.flash.store import Ack, Store

_REMINDER: Final = 1.0
"""Seconds after which the agent is told again: datagrams get lost, agents are started anew."""


@dataclass(frozen=True, slots=True)
class Notice:
    """The worker `local_rank` asks to have the snapshot in `stem` made safe."""

    local_rank: int
    stem: str
    round: int
    step: int

    def encode(self) -> bytes:
        """The datagram."""
        return json.dumps([self.local_rank, self.stem, self.round, self.step]).encode()

    @classmethod
    def decode(cls, data: bytes) -> Notice:
        """Raises ValueError for anything else."""
        match json.loads(data):
            case [int(local_rank), str(stem), int(number), int(step)]:
                return cls(local_rank, stem, number, step)
        raise ValueError(f"{data[:100]!r} is no notice")


class Notices:
    """The worker's end, in one round."""

    def __init__(self, store: Store, local_rank: int, round_number: int) -> None:
        self._store, self._local_rank, self._round = store, local_rank, round_number
        self._path = os.environ.get(names.ENV_FLASH_SOCKET)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._last = b""
        self._told_at = 0.0
        self._published: int | None = None
        self.ack: Ack | None = None

    def tell(self, held: Held, *, candidate: bool) -> None:
        """This snapshot is published; `candidate`: it is to be made safe."""
        self._published = held.header.edition.step
        if candidate:
            self._last = Notice(self._local_rank, held.stem.name, self._round, self._published).encode()
            self._send()

    def is_safe(self, step: int) -> bool:
        """Whether the agent has said so of this step."""
        if not self._path:
            return self._published is not None and self._published >= step
        ack = self._store.ack(self._local_rank)
        if ack and ack.round == self._round and ack.step >= step:
            self.ack = ack
            return True
        if self.is_overdue:
            self._send()
        return False

    @property
    def is_overdue(self) -> bool:
        """Whether there was time enough for an answer to the last word."""
        return time.monotonic() > self._told_at + _REMINDER

    def _send(self) -> None:
        self._told_at = time.monotonic()
        if self._path and self._last:
            with contextlib.suppress(OSError):
                self._socket.sendto(self._last, self._path)
