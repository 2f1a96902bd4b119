"""A worker's snapshots: its state into a slot at step boundaries, for the price of a copy.

Every worker calls `take` and `commit` at the same boundaries, so that all of them pin the same steps. Guarantee: from
the first commit on there is at every instant a step whose snapshots are complete on all workers and that is committed.
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
from llmtrain_trainer.flash.pins import Pins, victim
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
class _Room:
    slot: Slot
    step: int | None
    memory: torch.Tensor


class Snapshots:
    """One worker's snapshots of one round, in `slots` slots."""

    def __init__(self, store: Store, who: Who, device: torch.device, notices: Notices, slots: int) -> None:
        self.pins = Pins()
        self.newest: int | None = None
        self._store, self._who, self._notices = store, who, notices
        self._copier = Copier(device)
        self._slots = [store.own(who.local_rank, number) for number in range(slots)]
        self._rooms: list[_Room] = []  # those whose memory is ready; a thread adds to them
        self._kept: list[Slot] = []  # what the round began from, in another size
        self._size = 0
        self._identity: tuple[int, ...] = ()
        self._layout = Extents((), ())
        self._fixed, self._encoded = Fixed("", (), {}, {}), b""
        self._model: dict[str, Any] = {}
        self._trouble: Exception | None = None
        self._publishing: threading.Thread | None = None
        self._reading: int | None = None
        self._newest_held: Held | None = None

    def prepare(self, state: State, model: dict[str, Any], began: Edition | None) -> int:
        """Have the slots' memory, in the background; bytes of one, head and checksums too.

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
        self._reserve(sorted(steps, key=lambda pair: pair[1] is not None))
        return size + 2 * (head + _CHANGING) + size // CHUNK * _SUM + 4 * mmap.PAGESIZE

    @property
    def ready(self) -> bool:
        """Whether there is memory for the next snapshot. Raises what reserving it raised."""
        if self._trouble is not None:
            raise self._trouble
        return self._victim() is not None

    def take(self, state: State, training: dict[str, Any], *, nominate: bool) -> float:
        """Copy the state into a slot and publish it; the seconds that took. Has to be `ready`.

        `training`: where training stands, its "step" too. `nominate`: it may be the next candidate for a commit.
        """
        began, step = time.perf_counter(), int(training["step"])
        self._finish_publishing()
        layout = self._layout_of(state)
        room = self._victim()
        if room is None:
            raise AssertionError("there is no slot for a snapshot")
        room.step = None
        room.slot.withdraw()
        if len(room.memory) < layout.size:  # an optimizer with more state than was expected
            try:
                room.memory = self._memory(room.slot, layout.size)
            except StoreFull as full:
                self._trouble = full
                return time.perf_counter() - began
        self._copier.copy(layout.extents, room.memory)
        edition = Edition(step, self._who.round, self._who.world_size)
        header = Header(edition, self._who.rank, self._fixed, state.numbers(), training, state.rng())
        room.step = self.newest = step
        self.pins = self.pins.taken(step, nominate=nominate)
        if self._copier.pinned:
            self._publishing = threading.Thread(target=self._publish, args=(room, header), name="flash", daemon=True)
            self._publishing.start()
        else:
            self._publish(room, header)
        return time.perf_counter() - began

    def before_update(self) -> None:
        """See `Copier.before_update`."""
        self._copier.before_update()

    @property
    def acknowledged(self) -> bool:
        """Whether this worker's candidate is safe."""
        return self.pins.candidate is not None and self._notices.is_safe(self.pins.candidate)

    def nominate(self) -> None:
        """The newest snapshot is to be made safe; there is no other candidate."""
        self._finish_publishing()
        if self.newest is not None and self._newest_held:
            self.pins = self.pins.taken(self.newest, nominate=True)
            self._notices.tell(self._newest_held, candidate=True)

    def commit(self) -> None:
        """All workers' candidates are safe."""
        self.pins = self.pins.acknowledged()
        if self._kept:
            kept, self._kept = self._kept, []
            self._reserve([(slot, None) for slot in kept])

    def read(self, step: int) -> tuple[Sequence[Segment], memoryview] | None:
        """The snapshot of `step`, the newest, which stays as it is until `release`; None if there is none."""
        self._finish_publishing()
        for room in self._rooms:
            if room.step == step == self.newest:
                self._reading = step
                return self._layout.segments, room.slot.memory[: self._layout.size]
        return None

    def release(self) -> None:
        """What was being read may be overwritten."""
        self._reading = None

    def _victim(self) -> _Room | None:
        rooms = list(self._rooms)
        number = victim([room.step for room in rooms], self.pins, self._reading)
        return None if number is None else rooms[number]

    def _publish(self, room: _Room, header: Header) -> None:
        self._copier.wait()
        try:
            held = room.slot.publish(header, encode(header, self._encoded))
        except StoreFull as full:  # told at the next boundary; from then on there are no snapshots
            room.slot.withdraw()
            room.step, self._trouble = None, full
            return
        self._newest_held = held
        self._notices.tell(held, candidate=self.pins.candidate == header.edition.step)

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

    def _reserve(self, slots: Sequence[tuple[Slot, int | None]]) -> None:
        def work() -> None:
            try:
                for slot, step in slots:
                    self._rooms.append(_Room(slot, step, self._memory(slot, self._size)))
            except Exception as error:  # noqa: BLE001 - raised where it is waited for
                self._trouble = error

        threading.Thread(target=work, name="flash-memory", daemon=True).start()

    def _memory(self, slot: Slot, size: int) -> torch.Tensor:
        slot.reserve(size)
        memory = torch.frombuffer(slot.memory, dtype=torch.uint8) if size else torch.empty(0, dtype=torch.uint8)
        if self._copier.pinned and size:
            runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
            torch.cuda.check_error(runtime.cudaHostRegister(memory.data_ptr(), size, 1))
        return memory
