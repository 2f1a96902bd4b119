"""What a round begins with, found and loaded by all workers together.

Guarantee: while the storage cannot be read nobody starts at step 0 and nobody gives up; the workers ask again, say so,
and stay in their round, so that no restart is spent on it.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeVar, cast

import torch

from llmtrain_trainer.avoiding import avoid
from llmtrain_trainer.checkpoint import restore
from llmtrain_trainer.checkpoint.catalog import Catalog
from llmtrain_trainer.checkpoint.manifest import Damaged
from llmtrain_trainer.checkpoint.restore import Source
from llmtrain_trainer.checkpoint.saver import Saver
from llmtrain_trainer.checkpoint.state import EngineState
from llmtrain_trainer.checkpoint.storage import StorageError
from llmtrain_trainer.checkpoint.teller import Teller
from llmtrain_trainer.distributed import Worker
from llmtrain_trainer.errors import TrainerError

FIRST_RETRY: Final = 1.0
LAST_RETRY: Final = 30.0
"""Seconds between two attempts to read the storage: the first, doubling up to the last."""

T = TypeVar("T")


class Opening:
    """One worker's part in it. Methods are collective, if they do not say otherwise, and raise the same `TrainerError`
    on all workers."""

    def __init__(self, worker: Worker, teller: Teller) -> None:
        self._worker, self._teller = worker, teller

    def choose(self, saver: Saver | None, own: Catalog | None, restore_from: str | None) -> Source | None:
        """What to begin with, None: fresh weights at step 0. `saver` claims the storage before anybody looks at it."""

        def claim_and_choose() -> tuple[Source | None, bool]:
            claimed = saver is None or self._claim(saver)
            return restore.choose(own, restore_from), claimed

        source, claimed = self._insist(claim_and_choose)
        if claimed:
            self._teller.tell(error="", error_reason="")
        return source

    def load(self, state: EngineState, source: Source) -> tuple[Source, dict[str, Any]]:
        """From this source, or from an older checkpoint beside it if it is damaged; which, and the manifest's state."""
        pauses = _pauses()
        while True:
            try:
                stored = self._patiently(lambda: restore.load(state, source, self._worker), pauses)  # noqa: B023 - at once
            except Damaged as damage:
                source = self._insist(functools.partial(restore.choose_older, source, damage, avoid()))
            else:
                return source, stored

    def load_weights(self, model: torch.nn.Module, source: Source) -> None:
        """Those of a finished model. Not collective: each worker reads and waits for itself."""
        self._patiently(lambda: source.load_weights(model), _pauses())

    def _patiently(self, do: Callable[[], T], pauses: Iterator[float]) -> T:
        """What `do` gives, tried again while it raises `StorageError`; that is told, and taken back at last."""
        waited = False
        while True:
            try:
                done = do()
            except StorageError as error:
                waited = True
                self._wait(error, next(pauses))
            else:
                if waited:
                    self._teller.tell(error="", error_reason="")
                return done

    def _claim(self, saver: Saver) -> bool:
        """Rank 0's. A claim that fails for want of room or rights is made up for by the first save that can."""
        try:
            saver.claim()
        except StorageError as error:
            self._teller.trouble(error)
            return False
        return True

    def _insist(self, ask: Callable[[], T]) -> T:
        """What `ask` gives on rank 0, on all workers; asked again while it raises `StorageError`."""
        pauses = _pauses()
        while True:
            value, error = self._worker.from_first(_answer(ask) if self._worker.is_first else (None, None))
            if error is None:
                return cast("T", value)
            if not error.may_pass:
                raise TrainerError(error.reason, error.message)
            self._wait(StorageError(error.reason, error.message), next(pauses))

    def _wait(self, error: StorageError, pause: float) -> None:
        self._teller.trouble(error)
        time.sleep(pause)


@dataclass(frozen=True, slots=True)
class _Error:
    """A `TrainerError` as data, for the way to the other workers."""

    reason: str
    message: str
    may_pass: bool


def _answer(ask: Callable[[], T]) -> tuple[T | None, _Error | None]:
    try:
        return ask(), None
    except TrainerError as error:
        return None, _Error(error.reason, str(error), isinstance(error, StorageError))


def _pauses() -> Iterator[float]:
    pause = FIRST_RETRY
    while True:
        yield pause
        pause = min(LAST_RETRY, 2 * pause)
