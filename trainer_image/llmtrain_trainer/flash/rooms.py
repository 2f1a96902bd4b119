"""The memory of a worker's snapshots: which slots it has by now, and which one the next snapshot goes to.

Memory is had in the background, and asked for again while there is none: a store that is full now need not stay so, for
copies of earlier rounds are given up as this round gets its own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from llmtrain_trainer.flash.pins import Pins, victim
from llmtrain_trainer.flash.slot import Slot, StoreFull

_PAUSE: Final = 1.0
"""Seconds until a full store is asked again."""


@dataclass(slots=True)
class Room:
    """A slot with its memory, uint8 of shape (n,), and the step that lies in it."""

    slot: Slot
    step: int | None
    memory: torch.Tensor


class Rooms:
    """Those whose memory is there; a thread adds to them. `pinned`: an accelerator copies into it."""

    def __init__(self, *, pinned: bool) -> None:
        self.trouble: Exception | None = None
        self._pinned = pinned
        self._rooms: list[Room] = []

    def reserve(self, slots: Sequence[tuple[Slot, int | None]], size: int) -> None:
        """Have `size` bytes in each slot, in the background; the steps that lie in them."""

        def work() -> None:
            for slot, step in slots:
                try:
                    self._rooms.append(Room(slot, step, self._until_there(slot, size)))
                except Exception as error:  # noqa: BLE001 - told by whoever waits for the memory
                    self.trouble = error
                    return

        threading.Thread(target=work, name="flash-memory", daemon=True).start()

    def grow(self, room: Room, size: int) -> bool:
        """Have more memory in a room that holds nothing; if there is none now, it is a room again when there is."""
        if len(room.memory) >= size:
            return True
        self._unpin(room.memory)
        try:
            room.memory = self._memory(room.slot, size)
        except StoreFull as full:
            self.trouble = full
            self._rooms.remove(room)
            self.reserve([(room.slot, None)], size)
            return False
        return True

    def free(self, pins: Pins, reading: int | None) -> Room | None:
        """The one to write the next snapshot to; see `pins.victim`."""
        rooms = list(self._rooms)
        number = victim([room.step for room in rooms], pins, reading)
        return None if number is None else rooms[number]

    def __len__(self) -> int:
        return len(self._rooms)

    def _until_there(self, slot: Slot, size: int) -> torch.Tensor:
        while True:
            try:
                memory = self._memory(slot, size)
            except StoreFull as full:
                self.trouble = full
                time.sleep(_PAUSE)
            else:
                self.trouble = None
                return memory

    def _memory(self, slot: Slot, size: int) -> torch.Tensor:
        slot.reserve(size)
        memory = torch.frombuffer(slot.memory, dtype=torch.uint8) if size else torch.empty(0, dtype=torch.uint8)
        if self._pinned and size:
            _check(torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), size, 1))  # type: ignore[no-untyped-call]
        return memory

    def _unpin(self, memory: torch.Tensor) -> None:
        if self._pinned and len(memory):
            _check(torch.cuda.cudart().cudaHostUnregister(memory.data_ptr()))  # type: ignore[no-untyped-call]


def _check(code: Any) -> None:
    torch.cuda.check_error(code)
