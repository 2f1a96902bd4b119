"""A worker's snapshots: its state into a slot at step boundaries, for the price of a copy.

Every worker calls `take` and `commit` at the same boundaries, so that all of them pin the same steps. Guarantee: from
the first commit on there is at every instant a step whose snapshots are complete on all workers and that is committed.
A snapshot that one worker could not take is given up by all; one whose head could not be written gets it later.
"""

from __future__ import annotations

import mmap
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from llmtrain_trainer.checkpoint.extents import Copier, Extents
from llmtrain_trainer.checkpoint.layout import Segment
from llmtrain_trainer.flash.header import CHUNK, Edition, Fixed, Header, encode
from llmtrain_trainer.flash.notices import Notices
from llmtrain_trainer.flash.pins import Pins
from llmtrain_trainer.flash.rooms import Room, Rooms
from llmtrain_trainer.flash.slot import Held, Slot, StoreFull
from llmtrain_trainer.flash.state import State
from llmtrain_trainer.flash.store import Store

SLOTS: Final = 3
"""Committed, candidate, and being written; one more where a snapshot may be read for long."""
_CHANGING: Final = 32 * 1024
_SUM: Final = 40
"""Bytes of a head beside its fixed part, and of a checksum. A head is there twice while it is replaced."""


@dataclass(frozen=True, slots=True)
class Who:
    """Whose snapshots: those of this worker in this round of this job."""

    job_uid: str
    round: int
    world_size: int
    rank: int
    local_rank: int


@dataclass(slots=True)
class _Taken:
    """A snapshot in its room; `fixed` is its header's, encoded. `held`: as published, None if it could not be."""

    room: Room
    header: Header
    fixed: bytes
    held: Held | None = None


class Snapshots:
    """One worker's snapshots of one round, in `slots` slots."""

    def __init__(self, store: Store, who: Who, device: torch.device, notices: Notices, slots: int) -> None:
        self.pins = Pins()
        self.newest: int | None = None
        self._store, self._who, self._notices = store, who, notices
        self._copier = Copier(device)
        self._slots = [store.own(who.local_rank, number) for number in range(slots)]
        self._rooms = Rooms(pinned=self._copier.pinned)
        self._kept: list[Slot] = []  # what the round began from, in another size
        self._wanted: list[tuple[Slot, int | None]] = []
        self._size = 0
        self._identity: tuple[int, ...] = ()
        self._layout = Extents((), ())
        self._fixed, self._encoded = Fixed("", (), {}, {}), b""
        self._model: dict[str, Any] = {}
        self._unwritten: StoreFull | None = None
        self._publishing: threading.Thread | None = None
        self._reading: int | None = None
        self._newest: _Taken | None = None
        self._candidate: _Taken | None = None

    def prepare(self, state: State, model: dict[str, Any], began: Edition | None) -> int:
        """Find out what a snapshot needs: bytes of a slot, head and checksums too. `reserve` or `give_up` comes next.

        `began`: the edition that was restored.
        """
        self._model = model
        layout = Extents.of(state.expected())
        self._size = size = layout.size
        head = len(Fixed(self._who.job_uid, layout.segments, state.shapes(), model).encode())
        steps: list[tuple[Slot, int | None]] = []
        for slot in self._slots:
            is_kept = began is not None and self._store.holds(slot, began)
            if is_kept and slot.size != size:
                self._kept.append(slot)
            else:
                steps.append((slot, began.step if began and is_kept else None))
        if began:
            self.pins = Pins(committed=began.step)
        # What is free first: the next snapshot is to go there.
        self._wanted = sorted(steps, key=lambda pair: pair[1] is not None)
        return size + 2 * (head + _CHANGING) + size // CHUNK * _SUM + 4 * mmap.PAGESIZE

    def reserve(self) -> None:
        """Have the slots' memory, in the background."""
        self._rooms.reserve(self._wanted, self._size)

    def give_up(self, why: str) -> None:
        """There are no snapshots in this round."""
        self._rooms.trouble = MemoryError(why)

    @property
    def ready(self) -> bool:
        """Whether there is memory for the next snapshot."""
        return self._rooms.free(self.pins, self._reading) is not None

    @property
    def trouble(self) -> Exception | None:
        """Why there is none, or why the newest snapshot is of no use to anybody else."""
        return self._rooms.trouble or self._unwritten

    @property
    def lost(self) -> bool:
        """Whether this worker could not take its candidate."""
        return self.pins.candidate is not None and self._candidate is None

    def take(self, state: State, training: dict[str, Any], *, nominate: bool) -> float:
        """Copy the state into a slot and publish it; the seconds that took. Has to be `ready`.

        `training`: where training stands, its "step" too. `nominate`: it may be the next candidate for a commit.
        """
        began, step = time.perf_counter(), int(training["step"])
        self._finish_publishing()
        layout = self._layout_of(state)
        room = self._rooms.free(self.pins, self._reading)
        if room is None:
            raise AssertionError("there is no slot for a snapshot")
        room.step = None
        room.slot.withdraw()
        # The same on all workers, also if this one cannot take it.
        self.newest, self._newest = step, None
        self.pins = self.pins.taken(step, nominate=nominate)
        is_candidate = self.pins.candidate == step
        if not self._rooms.grow(room, layout.size):  # an optimizer with more state than was expected
            return time.perf_counter() - began
        self._copier.copy(layout.extents, room.memory)
        edition = Edition(step, self._who.round, self._who.world_size)
        header = Header(edition, self._who.rank, self._fixed, state.numbers(), training, state.rng())
        room.step = step
        self._newest = taken = _Taken(room, header, self._encoded)
        if is_candidate:
            self._candidate = taken
        if self._copier.pinned:
            self._publishing = threading.Thread(target=self._publish, args=(taken,), name="flash", daemon=True)
            self._publishing.start()
        else:
            self._publish(taken)
        return time.perf_counter() - began

    def before_update(self) -> None:
        """See `Copier.before_update`."""
        self._copier.before_update()

    @property
    def acknowledged(self) -> bool:
        """Whether this worker's candidate is safe."""
        if self._candidate is None or self.pins.candidate is None:
            return False
        is_overdue = self._notices.is_overdue
        if self._notices.is_safe(self.pins.candidate):
            return True
        if is_overdue:
            self._heal(self._candidate)
        return False

    def nominate(self) -> None:
        """The newest snapshot is to be made safe; there is no other candidate."""
        self._finish_publishing()
        if self.newest is None:
            return
        self.pins, self._candidate = self.pins.taken(self.newest, nominate=True), self._newest
        if self._newest and self._newest.held:
            self._notices.tell(self._newest.held, candidate=True)

    def commit(self) -> None:
        """All workers' candidates are safe."""
        self.pins, self._candidate = self.pins.acknowledged(), None
        if self._kept:
            kept, self._kept = self._kept, []
            self._rooms.reserve([(slot, None) for slot in kept], self._size)

    def renounce(self) -> None:
        """Some worker's candidate is lost."""
        self.pins, self._candidate = self.pins.renounced(), None

    def read(self, step: int) -> tuple[Sequence[Segment], memoryview] | None:
        """The snapshot of `step`, the newest, which stays as it is until `release`; None if there is none."""
        self._finish_publishing()
        taken = self._newest
        if taken is None or step != self.newest:
            return None
        self._reading = step
        return self._layout.segments, taken.room.slot.memory[: self._layout.size]

    def release(self) -> None:
        """What was being read may be overwritten."""
        self._reading = None

    def _publish(self, taken: _Taken) -> None:
        self._copier.wait()
        try:
            taken.held = taken.room.slot.publish(taken.header, encode(taken.header, taken.fixed))
        except StoreFull as full:  # its data are there: to be saved they need no head, a candidate gets one later
            taken.room.slot.withdraw()
            self._unwritten = full
            return
        self._unwritten = None
        self._notices.tell(taken.held, candidate=self.pins.candidate == taken.header.edition.step)

    def _heal(self, candidate: _Taken) -> None:
        """A head that could not be written, or was damaged since: until it is there nothing more is committed."""
        is_busy = self._publishing is not None and self._publishing.is_alive()
        if not is_busy and (candidate.held is None or not candidate.held.stands):
            self._publish(candidate)

    def _finish_publishing(self) -> None:
        if self._publishing is not None:
            self._publishing.join()
            self._publishing = None

    def _layout_of(self, state: State) -> Extents:
        identity = state.identity()
        if identity != self._identity:
            self._identity, self._layout = identity, Extents.of(state.pieces())
            self._fixed = Fixed(self._who.job_uid, self._layout.segments, state.shapes(), self._model)
            self._encoded = self._fixed.encode()
        return self._layout
