"""What the member's workers have said so far, for its metrics: numbers of now, and sums over all of its rounds.

Workers tell sums of their own since they began, so a report that is lost costs nothing; what the workers of a round
said last is added up when those of the next one speak. Without prometheus_client, or without a port, nobody reads it,
and training goes on.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from llmtrain_operator.contract.wire import BEFORE_TRAINING, STEP_BOUNDS, Progress
from llmtrain_trainer.agent.environment import Environment
from llmtrain_trainer.agent.membership import Membership

log = logging.getLogger(__name__)

CLASSES: Final = len(STEP_BOUNDS) + 1
"""Of durations that steps are counted by; a trainer that has others is of another version, and not counted."""


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over all rounds. `steps`: of each class of durations, see `wire.Durations`. `data_seconds`: of whichever of
    a round's workers has waited for its batches longest."""

    steps: tuple[int, ...] = (0,) * CLASSES
    step_seconds: float = 0.0
    data_seconds: float = 0.0


class Book:
    """Takes in reports in one thread and is read in others."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._round = 0
        self._said: dict[int, Progress] = {}
        self._trained: Progress | None = None
        self._past = Totals()

    def hear(self, said: Progress) -> None:
        """A worker has told its progress. One of an earlier round is too late."""
        with self._lock:
            if said.round < self._round:
                return
            if said.round > self._round:
                self._past, self._said, self._round = _plus(self._past, self._said.values()), {}, said.round
            self._said[said.rank] = said
            if said.rank == min(self._said) and said.phase not in BEFORE_TRAINING:
                self._trained = said

    def workers(self) -> list[Progress]:
        """What those of the newest round said last, lowest rank first."""
        with self._lock:
            return [said for _, said in sorted(self._said.items())]

    def trained(self) -> Progress | None:
        """The newest word of the member's first worker on training; while the next round's load, that of the last."""
        with self._lock:
            return self._trained

    def totals(self) -> Totals:
        """Up to now."""
        with self._lock:
            return _plus(self._past, self._said.values())


def _plus(past: Totals, said: Iterable[Progress]) -> Totals:
    """With what one round's workers have told; all of them take the same steps, so the first one's are the member's."""
    told = sorted(said, key=lambda each: each.rank)
    known = [each.durations for each in told if each.durations and len(each.durations.counts) == CLASSES]
    spent = [each.spent for each in told if each.spent]
    return Totals(
        steps=tuple(sum(pair) for pair in zip(past.steps, known[0].counts, strict=True)) if known else past.steps,
        step_seconds=past.step_seconds + (known[0].seconds if known else 0.0),
        data_seconds=past.data_seconds + max((each.data for each in spent), default=0.0),
    )


def open_metrics(environment: Environment, membership: Membership) -> Book:
    """The book of this member, and its endpoint if it is to have one; nothing waits for that."""
    book = Book()
    if environment.metrics_port:
        arguments = environment, membership, book
        threading.Thread(target=_serve, args=arguments, name="metrics", daemon=True).start()
    return book


def _serve(environment: Environment, membership: Membership, book: Book) -> None:
    try:
        from llmtrain_trainer.agent.exposition import serve
    except ImportError as error:
        log.warning("no metrics: %s; use an image that has it", error)
        return
    try:
        serve(environment, membership, book)
    except (OSError, OverflowError) as error:
        log.warning("no metrics: port %s: %s", environment.metrics_port, error)
