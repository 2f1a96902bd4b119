"""A pod's directory of snapshots. It lies in memory, outlives workers and agents, and goes with the pod.

Guarantee: what `scan` offers is complete, of this job, and of no other.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from llmtrain_operator.contract import names
from llmtrain_trainer.checkpoint.manifest import Damaged, NewerFormat
from llmtrain_trainer.flash import slot
from llmtrain_trainer.flash.header import Edition
from llmtrain_trainer.flash.slot import Held, Slot

_OWN: Final = "own"
_REPLICA: Final = "replica"
_ACK: Final = ".ack"
_DURABLE: Final = "durable"


@dataclass(frozen=True, slots=True)
class Ack:
    """How an agent says that a snapshot of one of its workers is safe: in memory of the members `kept_by` (ranks)."""

    round: int
    step: int
    kept_by: tuple[int, ...]


class Store:
    """The snapshots below `root`, a directory that is there."""

    def __init__(self, root: Path, job_uid: str) -> None:
        self.root, self._job_uid = root, job_uid
        self._views: dict[Path, memoryview] = {}
        self._warming: threading.Thread | None = None

    @classmethod
    def of_this_pod(cls) -> Store | None:
        """None in a pod without one."""
        root = os.environ.get(names.ENV_FLASH)
        return cls(Path(root), os.environ.get(names.ENV_JOB_UID, "")) if root else None

    def scan(self) -> tuple[tuple[Held, ...], tuple[Damaged, ...]]:
        """All complete snapshots, and what is damaged. Others may write meanwhile."""
        found, damaged = [], []
        for path in sorted(self.root.glob(f"*{slot.HEAD}")):
            try:
                snapshot = slot.held(path.with_suffix(""))
            except FileNotFoundError:
                continue
            except Damaged as damage:
                damaged.append(damage)
                continue
            except NewerFormat as newer:  # another image's: of no use to this one, and no harm
                damaged.append(Damaged(path.name, str(newer)))
                continue
            if snapshot and snapshot.header.fixed.job_uid == self._job_uid:
                found.append(snapshot)
        return tuple(found), tuple(damaged)

    def warm(self, local_rank: int) -> None:
        """Map a worker's own snapshots, in the background: until they are restored there is other work to wait for."""

        def work() -> None:
            for path in self.root.glob(f"{_OWN}-{local_rank}-*{slot.HEAD}"):
                with contextlib.suppress(OSError):
                    stem = path.with_suffix("")
                    self._views[stem] = slot.view(stem)

        self._warming = threading.Thread(target=work, name="flash-warming", daemon=True)
        self._warming.start()

    def mapped(self, stem: Path) -> memoryview | None:
        """The data of a slot, if `warm` has mapped them."""
        if self._warming is not None:
            self._warming.join()
        return self._views.get(stem)

    def cool(self) -> None:
        """What was restored is not needed any more: give the mappings back."""
        self._views.clear()

    def own(self, local_rank: int, number: int) -> Slot:
        """Slot `number` of the worker with this local rank."""
        return Slot(self.root / f"{_OWN}-{local_rank}-{number}")

    def replica(self, edition: Edition, rank: int, number: int) -> Slot:
        """Slot `number` for copies of what `rank` of another member takes in that round."""
        return Slot(self.root / f"{_REPLICA}-{edition.round}-{rank}-{number}")

    def holds(self, room: Slot, edition: Edition) -> bool:
        """Whether a slot has a snapshot of this edition."""
        snapshot = self._look(room.stem)
        return snapshot is not None and snapshot.header.edition == edition

    def withdraw_own(self, local_rank: int, keep: Edition | None) -> None:
        """Give up a worker's snapshots but for those of one edition; the memory stays, for new ones."""
        for path in self.root.glob(f"{_OWN}-{local_rank}-*{slot.DATA}"):
            room = Slot(path.with_suffix(""))
            if keep is None or not self.holds(room, keep):
                room.withdraw()

    def drop_replicas(self, before: int, keep: Edition | None) -> None:
        """Give back the memory of copies made in rounds before `before`, but for those of one edition."""
        for stem in {self.root / path.name.partition(".")[0] for path in self.root.glob(f"{_REPLICA}-*.*")}:
            if int(stem.name.split("-")[1]) < before and (keep is None or not self.holds(Slot(stem), keep)):
                slot.remove(stem)

    def _look(self, stem: Path) -> Held | None:
        with contextlib.suppress(Damaged, NewerFormat, FileNotFoundError):
            snapshot = slot.held(stem)
            if snapshot and snapshot.header.fixed.job_uid == self._job_uid:
                return snapshot
        return None

    @property
    def capacity(self) -> int:
        """Bytes that it has room for when it is empty."""
        facts = os.statvfs(self.root)
        return facts.f_blocks * facts.f_frsize

    @property
    def durable_step(self) -> int:
        """The newest step that is known here to be in durable storage, -1 if none is."""
        try:
            return int((self.root / _DURABLE).read_text())
        except (FileNotFoundError, ValueError):
            return -1

    def note_durable(self, step: int) -> None:
        """This step is in durable storage: whoever has it in memory too need not ask there."""
        self._write(_DURABLE, str(step))

    def _write(self, name: str, text: str) -> None:
        new = self.root / f"{name}.new"
        new.write_text(text)
        new.replace(self.root / name)

    def say(self, local_rank: int, ack: Ack) -> None:
        """The agent: this worker's snapshot is safe."""
        self._write(f"{_OWN}-{local_rank}{_ACK}", json.dumps([ack.round, ack.step, ack.kept_by]))

    def ack(self, local_rank: int) -> Ack | None:
        """The worker: what is safe."""
        try:
            number, step, kept_by = json.loads((self.root / f"{_OWN}-{local_rank}{_ACK}").read_text())
        except FileNotFoundError:
            return None
        return Ack(number, step, tuple(kept_by))
