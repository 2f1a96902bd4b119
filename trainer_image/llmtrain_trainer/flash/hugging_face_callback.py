"""Hugging Face's Trainer with snapshots. See `callbacks.hugging_face` for the limits.

The Trainer has no way to be told in a callback where to begin: its loop counts epochs and batches from 0. It is led
there by its data loader (Accelerate's), which skips batches, and orders the samples of each epoch by its number.
"""

from __future__ import annotations

import sys
from typing import Any

import transformers

from llmtrain_trainer.flash.checkpointer import Checkpointer


class FlashCallback(transformers.TrainerCallback):
    """One for each `train`."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings
        self._checkpointer: Checkpointer | None = None
        self._loss: float | None = None
        self._skipping: Any = None
        self._steps_per_epoch = 0.0

    def on_train_begin(self, args: Any, state: Any, *_: Any, **kwargs: Any) -> None:
        """Restore."""
        settings = {"max_steps": state.max_steps} | self._settings
        model, optimizer, scheduler = kwargs["model"], kwargs["optimizer"], kwargs["lr_scheduler"]
        self._checkpointer = Checkpointer(model, optimizer, scheduler=scheduler, **settings)
        step = self._checkpointer.restore()
        if step >= state.max_steps:
            # The Trainer would make a step before it sees that there is none left; without batches it ends.
            kwargs["train_dataloader"].skip_batches = sys.maxsize
        elif step:
            self._skip(kwargs["train_dataloader"], step, args.gradient_accumulation_steps)
        state.global_step = step

    def on_epoch_begin(self, *_: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Draw what the data loader draws at an epoch's begin once more, if it was not drawn before the snapshot."""
        if self._checkpointer is not None and self._skipping is None:
            self._checkpointer.rewind_generators()

    def on_step_begin(self, *_: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Within an epoch the data loader has drawn it, and in vain."""
        if self._checkpointer is not None:
            self._checkpointer.rewind_generators()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:  # noqa: ARG002
        """Remember the loss for the next report."""
        self._loss = (logs or {}).get("loss", self._loss)

    def on_step_end(self, args: Any, state: Any, *_: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Take a snapshot."""
        if self._steps_per_epoch:  # the Trainer counts from where it began
            state.epoch = state.global_step / self._steps_per_epoch
        if self._checkpointer is not None:
            self._checkpointer.step(state.global_step, self._loss, epoch=float(state.epoch or 0.0))

    def on_epoch_end(self, *_: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Skip no more."""
        if self._skipping is not None:
            self._skipping.skip_batches, self._skipping = 0, None

    def on_train_end(self, *_: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Say the last word."""
        if self._checkpointer is not None:
            self._checkpointer.close()

    def _skip(self, loader: Any, step: int, accumulated: int) -> None:
        try:
            batches = len(loader)
        except TypeError:  # an IterableDataset
            return
        self._steps_per_epoch = batches / accumulated
        first, loader.skip_batches = divmod(step * accumulated, batches)
        self._skipping = loader if loader.skip_batches else None
        if first:
            _begin_with_epoch(loader, first)


def _begin_with_epoch(loader: Any, first: int) -> None:
    """Order the samples as if the Trainer, which counts from 0, began with that epoch."""
    set_epoch = loader.set_epoch

    def shifted(epoch: int) -> None:
        is_its_own = epoch == loader.iteration and epoch >= first  # as it iterates it says again what holds
        set_epoch(epoch if is_its_own else epoch + first)

    loader.set_epoch = shifted
