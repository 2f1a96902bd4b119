"""When training has stopped learning for good: a loss that is no number, or gradients that stay without one.

DeepSpeed leaves the weights alone when gradients are not finite and goes on. One such step now and then is harmless,
and fp16's search for its loss scale starts with a handful; but a run that skips every step would finish in full
health with a model that never learnt.
"""

from __future__ import annotations

import math
from typing import Final

from llmtrain_operator.contract import names
from llmtrain_trainer.errors import TrainerError

MOST_SKIPS: Final = 25
"""Skipped steps in a row that end the run; fp16's scale of 2**16 is down to 1 after 16."""

_REMEDY: Final = (
    "lower training.optimizer.lr, lengthen training.schedule.warmupSteps, set training.gradientClipping, or look at "
    "the data of this step"
)


class DivergenceGuard:
    """Watches one run. A restored one goes on with the counts and the loss of the step that it was saved at."""

    def __init__(self, skipped: int = 0, in_a_row: int = 0, loss: float | None = None) -> None:
        self._skipped = skipped
        self._in_a_row = in_a_row
        self._loss = loss

    def check(self, step: int, loss: float, skipped: int) -> None:
        """Look at a finished step; `skipped` counts all steps so far without an update. Raises `NonFiniteLoss`."""
        if not math.isfinite(loss):
            before = "no step before it" if self._loss is None else f"{self._loss:.4f} the step before"
            raise TrainerError(names.REASON_NON_FINITE_LOSS, f"the loss is {loss} at step {step} ({before}): {_REMEDY}")
        self._in_a_row = self._in_a_row + 1 if skipped > self._skipped else 0
        if self._in_a_row >= MOST_SKIPS:
            raise TrainerError(
                names.REASON_NON_FINITE_LOSS,
                f"the gradients were not finite in {self._in_a_row} steps in a row, up to step {step}, so that nothing "
                f"was learnt in them (loss {loss:.4f}): {_REMEDY}",
            )
        self._skipped, self._loss = skipped, loss

    @property
    def in_a_row(self) -> int:
        """Steps without an update up to the last one."""
        return self._in_a_row
