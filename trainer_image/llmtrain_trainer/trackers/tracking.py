"""Trackers as the training loop sees them: a point after each step, and what a snapshot has to carry of them.

A point is handed on once its step is final (`points.final`), so that a tracker shows what training came to and not
what a fault undid. What no tracker is known to have kept yet is in every snapshot: wherever a round goes on, it has the
points that the killed process had not written. The tracker passes over those that it has.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from llmtrain_operator.contract import wire
from llmtrain_trainer.checkpoint.standing import Standing
from llmtrain_trainer.config import Config
from llmtrain_trainer.distributed import Worker
from llmtrain_trainer.progress import Reporter
from llmtrain_trainer.trackers import points
from llmtrain_trainer.trackers.backends import chosen
from llmtrain_trainer.trackers.outbox import Outbox, close_all

CLOSING: Final = 60.0
"""Seconds that a complete job waits for its trackers: a short one ends before their libraries are imported."""
_NAMES: Final = {"tensorboard": "TensorBoard", "wandb": "Weights & Biases", "swanlab": "SwanLab", "mlflow": "MLflow"}


class Tracking:
    """One worker's part in one round; only rank 0 has outboxes. Without `spec.tracking` it does nothing."""

    def __init__(self, config: Config, worker: Worker, reporter: Reporter, begin: Standing, job: str) -> None:
        """`begin`: where training goes on. `job`: the UID, without which what it carries is another job's."""
        self._config, self._reporter, self._workers = config, reporter, worker.world_size
        names = chosen(config)
        self._every = config.tracking.every_steps if config.tracking else 0
        self._begun, self._job = begin.step, job
        self._pending = points.Pending(begin.untracked if begin.untracked_of == job else "")
        self._outboxes = [Outbox(name) for name in names] if worker.is_first else []
        self._final = begin.step
        self._handed = 0
        self._told: wire.Tracking | None = None

    @property
    def kept(self) -> int:
        """The newest step that all trackers have; rank 0's goes to all workers."""
        return min((outbox.kept for outbox in self._outboxes), default=0)

    def carry(self, standing: Standing) -> Standing:
        """`standing` with the points that are not kept yet."""
        return standing.carrying(self._pending.carried(), self._job) if self._every else standing

    def note(self, evaluated: bool, kept: float, *, suspect: bool) -> None:
        """Take in the step just done. `kept`: rank 0's. `suspect`: the step may be rolled back."""
        if not self._every:
            return
        self._pending.kept(int(kept))
        progress = self._reporter.progress
        if points.is_due(progress.step, self._every, self._config.training.max_steps, evaluated=evaluated):
            self._pending.note(points.point(progress, self._workers, time.time(), evaluated=evaluated))
        if self._outboxes:
            self._final = max(self._final, points.final(progress, self._begun, suspect=suspect) or 0)
            self._hand_on(self._final)
            self._pump()

    def close(self) -> None:
        """The job is complete: have everything kept, within bounds."""
        if not self._outboxes:
            return
        self._hand_on(self._reporter.progress.step)
        close_all(self._outboxes, CLOSING)
        self._tell()

    def _hand_on(self, final: int) -> None:
        """Those that are final, and the oldest of more than are to wait for that."""
        waiting = self._pending.beyond(self._handed)
        surplus = len(waiting) - points.WAITING + 1
        for number, (step, text) in enumerate(waiting):
            if step > final and number >= surplus:
                break
            self._handed = step
            for outbox in self._outboxes:
                outbox.add(step, text)

    def _pump(self) -> None:
        now = time.monotonic()
        for outbox in self._outboxes:
            outbox.pump(now)
        self._tell()

    def _tell(self) -> None:
        told = said(self._outboxes)
        if told != self._told:
            self._told = told
            self._reporter.update(tracking=told)


def said(outboxes: Sequence[Outbox]) -> wire.Tracking:
    """What is known of all of them, in one word and a sentence."""
    troubled = [outbox for outbox in outboxes if outbox.trouble]
    text = "; ".join(f"{_NAMES.get(outbox.name, outbox.name)}: {outbox.trouble}" for outbox in troubled)
    reason = next((outbox.reason for outbox in troubled if outbox.reason), "PointsLost" if troubled else "")
    return wire.Tracking(all(outbox.kept for outbox in outboxes), reason, text[:1000])
