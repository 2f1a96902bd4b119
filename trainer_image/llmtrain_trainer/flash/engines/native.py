"""Our own engine behind the common interface: `flash.session` for one state, driven save by save."""

from __future__ import annotations

import time
from typing import Any, Final

from llmtrain_operator.contract import names
from llmtrain_trainer.config import Flash
from llmtrain_trainer.distributed import Worker
from llmtrain_trainer.errors import TrainerError
from llmtrain_trainer.flash.engines import Restored, Saved
from llmtrain_trainer.flash.session import Session
from llmtrain_trainer.flash.state import State
from llmtrain_trainer.flash.store import Store
from llmtrain_trainer.progress import Reporter

_POLL: Final = 0.002


class Native:
    """Implements `engines.Engine`. `load` has to come first, also where there is nothing to load."""

    def __init__(self, state: State, worker: Worker, reporter: Reporter, store: Store, flash: Flash) -> None:
        self._state, self._worker = state, worker
        self._session = Session(flash, worker, reporter, store)

    def save(self, step: int, training: dict[str, Any]) -> Saved:
        """See `Engine.save`."""
        self._commit_if_safe()
        if self._worker.sums(not self._session.snapshots.ready)[0]:
            return Saved(0.0, "put off: there is no memory for it yet")
        return Saved(self._session.snapshots.take(self._state, training | {"step": step}, nominate=True))

    def wait(self, timeout: float) -> None:
        """See `Engine.wait`."""
        end = time.monotonic() + timeout
        while not self._commit_if_safe():
            if self._worker.sums(time.monotonic() > end)[0]:
                raise TrainerError(names.REASON_PEER_LOST, f"no buddy has taken a copy within {timeout:.0f} s")
            time.sleep(_POLL)

    def load(self) -> Restored | None:
        """See `Engine.load`."""
        self._session.recall.survey()
        recalled = self._session.recall.load(self._state, 0)
        self._session.begin(self._state, {}, recalled)
        return Restored(recalled.edition.step, recalled.state["training"]) if recalled else None

    def close(self) -> None:
        """See `Engine.close`: the slots are the pod's."""

    def _commit_if_safe(self) -> bool:
        """Whether nothing is on its way to be safe any more."""
        snapshots = self._session.snapshots
        if snapshots.pins.candidate is None:
            return True
        safe = self._worker.sums(snapshots.acknowledged)[0] >= self._worker.world_size
        if safe:
            snapshots.commit()
        return safe
