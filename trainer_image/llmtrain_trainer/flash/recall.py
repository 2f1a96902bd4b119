"""Going on from the members' memory: what there is, what is taken, and how it gets into the engine. Collective.

Guarantee: all workers go on from one edition, every byte of it proved or vouched for by a head that was published
complete; a source that turns out damaged or gone is told of and replaced by the next best one, and when none is left
by an older edition.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llmtrain_operator.contract import names
from llmtrain_operator.contract.wire import NOTHING, Avoid
from llmtrain_trainer.checkpoint.layout import LayoutError
from llmtrain_trainer.checkpoint.manifest import Damaged
from llmtrain_trainer.checkpoint.pieces import Piece
from llmtrain_trainer.distributed import Worker
from llmtrain_trainer.errors import TrainerError
from llmtrain_trainer.flash import planner
from llmtrain_trainer.flash.header import Edition
from llmtrain_trainer.flash.planner import Inventory, Location
from llmtrain_trainer.flash.protocol import Pass
from llmtrain_trainer.flash.slot import Slot
from llmtrain_trainer.flash.sources import Backing, BadSource, Sources
from llmtrain_trainer.flash.state import State
from llmtrain_trainer.flash.store import Store
from llmtrain_trainer.flash.survey import survey


@dataclass(frozen=True, slots=True)
class Recalled:
    """What was restored. `skipped`: sources that turned out bad, each as `WHERE: why`. The counts are shards that this
    worker read, by where they lay."""

    edition: Edition
    state: dict[str, Any]
    skipped: tuple[str, ...]
    local: int
    peers: int
    durable: int

    @property
    def tier(self) -> str:
        """The farthest of `names.TIERS` that this worker read from."""
        return "durable" if self.durable else "peer" if self.peers else "memory"

    @property
    def source(self) -> str:
        """In words."""
        parts = {"its own memory": self.local, "other members' memory": self.peers, "durable storage": self.durable}
        told = " and ".join(where for where, count in parts.items() if count)
        return f"{told or 'memory'} (step {self.edition.step} of round {self.edition.round})"


class _Bad(Exception):  # noqa: N818 - it says what happened
    """A worker could not read from where it was to."""


@dataclass(frozen=True, slots=True)
class _Trouble:
    """Why a worker could not fill its state: a bad location by its name, or what is not in the shards."""

    location: str
    message: str


class Recall:
    """One worker's part. `member`: its member's rank in the round; `by`: lets it into the other members' stores;
    `avoid`: what is not to be gone on from."""

    def __init__(self, store: Store, worker: Worker, member: int, by: Pass, avoid: Avoid = NOTHING) -> None:
        self._store, self._worker, self._member, self._by, self._avoid = store, worker, member, by, avoid
        self._inventories: list[Inventory] = []
        self._bad: dict[str, str] = {}

    def survey(self) -> None:
        """Look into all members' stores."""
        here = os.environ.get(names.ENV_FLASH_ADDRESS, "")
        mine = survey(self._store, self._member, here) if os.environ.get("LOCAL_RANK", "0") == "0" else None
        found = [each for each in self._worker.gather(mine) if each is not None]
        self._inventories = planner.allowed(found, self._avoid)

    @property
    def best(self) -> Edition | None:
        """The newest that memory alone can restore."""
        found = planner.newest(self._inventories, self._member, self._bad)
        return found[0] if found else None

    @property
    def attempted(self) -> bool:
        """Whether the engine may be half filled."""
        return bool(self._bad)

    @property
    def durable_step(self) -> int:
        """The newest step that a member knows to be in durable storage, -1 if none does."""
        return planner.durable_step(self._inventories)

    @property
    def skipped(self) -> tuple[str, ...]:
        """What is in the stores and of no use."""
        lying = [f"member {each.member}: {what}" for each in self._inventories for what in each.damaged]
        return (*lying, *self._bad.values())

    def load(self, state: State, at_least: int, backing: Backing | None = None) -> Recalled | None:
        """Bring the engine to the newest edition of at least that step; None: there is none, or none is left.

        After None the engine may be half filled, and has to be loaded otherwise. Raises `CheckpointMismatch`.
        """
        while True:
            durable = backing.edition if backing else None
            found = planner.newest(self._inventories, self._member, self._bad, durable)
            if found is None or found[0].step < at_least:
                return None
            edition, shards = found
            sources = Sources(shards, self._store, self._member, self._by, backing)
            try:
                return self._load(state, edition, sources)
            except _Bad:
                continue

    def _load(self, state: State, edition: Edition, sources: Sources) -> Recalled:
        """Raises `_Bad` on all workers alike."""
        same_size = edition.world_size == self._worker.world_size
        stored: dict[str, Any] = {}

        def begin() -> None:
            if self._worker.is_first:
                stored.update(sources.state())

        self._attempt(begin)
        stored = self._worker.from_first(stored)
        rng: dict[str, Any] = {}

        def fill(pieces: list[Piece]) -> None:
            def read() -> None:
                sources.fill(pieces, self._worker.rank)
                if same_size:
                    rng.update(sources.rng(self._worker.rank))

            self._attempt(read)

        state.load(stored["engine"], fill)
        if rng:
            state.load_rng(rng)
        else:
            state.reseed(edition.step)
        return Recalled(edition, stored, self.skipped, *_counts(sources.used, self._member))

    def _attempt(self, do: Callable[[], None]) -> None:
        """Let every worker do it; raises on all of them alike if one cannot."""
        trouble: _Trouble | None = None
        try:
            do()
        except BadSource as error:
            if error.location.member == self._member and isinstance(error.__cause__, Damaged):
                # The next round must not stumble over it again.
                Slot(self._store.root / error.location.entry.stem).withdraw()
            trouble = _Trouble(error.location.name, str(error))
        except LayoutError as error:
            trouble = _Trouble("", str(error))
        troubles = [each for each in self._worker.gather(trouble) if each is not None]
        for each in troubles:
            if not each.location:
                raise TrainerError(
                    names.REASON_CHECKPOINT_MISMATCH,
                    f"the snapshots in memory do not hold what this job needs: {each.message}; give the job the model "
                    "and the training.optimizer that it had",
                )
        if troubles:
            self._bad |= {each.location: each.message for each in troubles}
            raise _Bad


def _counts(used: set[Location], member: int) -> tuple[int, int, int]:
    local = sum(location.member == member for location in used)
    durable = sum(location.member is None for location in used)
    return local, len(used) - local - durable, durable
