"""When training goes wrong: a loss that is no number, gradients that stay without one, a loss that rises and stays up.

DeepSpeed leaves the weights alone when gradients are not finite and goes on. One such step now and then is harmless,
and fp16's search for its loss scale starts with a handful; but a run that skips every step would finish in full
health with a model that never learnt. All workers come to the same verdict at the same step, because all see the same
mean loss; and before the state of that step, or of one that is under suspicion, is kept anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

from llmtrain_operator.contract import names, wire
from llmtrain_trainer.errors import Diverged
from llmtrain_trainer.spikes import Spikes

MOST_SKIPS: Final = 25
"""Skipped steps in a row that end the run; fp16's scale of 2**16 is down to 1 after 16."""
_SHOWN: Final = 5

_REMEDY: Final = (
    "lower training.optimizer.lr, lengthen training.schedule.warmupSteps, set training.gradientClipping, or look at "
    "the data of this step"
)


class DivergenceGuard:
    """Watches one run. A restored one goes on with the counts and losses of the step that it was saved at.

    `samples`: those of the steps from one to another, counted from 1. `spikes`: None where the loss may rise.
    """

    def __init__(
        self,
        samples: Callable[[int, int], wire.Samples],
        spikes: Spikes | None,
        skipped: int = 0,
        in_a_row: int = 0,
        loss: float | None = None,
    ) -> None:
        self._samples, self._spikes = samples, spikes
        self._skipped, self._in_a_row = skipped, in_a_row
        self._loss = loss

    def check(self, step: int, loss: float, skipped: int) -> None:
        """Look at a finished step; `skipped` counts all steps so far without an update. Raises `Diverged`."""
        if not math.isfinite(loss):
            raise self._found(names.REASON_NON_FINITE_LOSS, f"the loss is {loss} at step {step}{self._before()}", step)
        self._in_a_row = self._in_a_row + 1 if skipped > self._skipped else 0
        if self._in_a_row >= MOST_SKIPS:
            text = (
                f"the gradients were not finite in {self._in_a_row} steps in a row, up to step {step}, so that nothing "
                f"was learnt in them (loss {loss:.4f})"
            )
            raise self._found(names.REASON_NON_FINITE_LOSS, text, step, self._in_a_row)
        before = self._before()
        if self._spikes and self._spikes.look(loss):
            risen = self._spikes.risen
            text = f"the loss has risen to {_listed(risen)} in the steps up to {step}{before}"
            # The step before it rose may have done it.
            raise self._found(names.REASON_LOSS_SPIKE, text, step, len(risen) + 1)
        self._skipped, self._loss = skipped, loss

    def standing(self) -> dict[str, Any]:
        """What a restored run has to know: fields of a `Standing`."""
        losses = {"recent_losses": self._spikes.recent, "risen_losses": self._spikes.risen} if self._spikes else {}
        return {"skipped_in_a_row": self._in_a_row, **losses}

    @property
    def suspects(self) -> bool:
        """Whether the state of the last step may turn out bad."""
        return bool(self._spikes and self._spikes.risen)

    def _before(self) -> str:
        usual = (self._spikes.recent if self._spikes else ()) or (() if self._loss is None else (self._loss,))
        return f" (before: {_listed(usual)})" if usual else " (no step before it)"

    def _found(self, reason: str, text: str, step: int, steps: int = 1) -> Diverged:
        return Diverged(reason, f"{text}: {_REMEDY}", self._samples(max(1, step - steps + 1), step))


def _listed(losses: tuple[float, ...]) -> str:
    return ", ".join(f"{loss:.4f}" for loss in losses[-_SHOWN:])
