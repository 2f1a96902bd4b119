"""Lightning with snapshots. See `callbacks.lightning` for the limits.

Lightning is told to resume before its loops begin, with the account of them that was kept beside the snapshot, as if
it had read it from a checkpoint of its own.
"""

from __future__ import annotations

from itertools import islice
from typing import Any

import lightning.pytorch

from llmtrain_trainer.errors import ConfigError
from llmtrain_trainer.flash.checkpointer import Checkpointer


class FlashCallback(lightning.pytorch.Callback):
    """One for each `fit`."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings
        self._checkpointer: Checkpointer | None = None
        self._began = self._step = 0

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Restore. Raises `ConfigError` for several optimizers."""
        optimizers = trainer.optimizers
        if len(optimizers) != 1 or not pl_module.automatic_optimization:
            raise ConfigError(
                f"llmtrain_trainer.flash: snapshots are of one optimizer under automatic optimization; the module has "
                f"{len(optimizers)}, or steps them by hand"
            )
        schedulers = {f"scheduler {n}": config.scheduler for n, config in enumerate(trainer.lr_scheduler_configs)}
        given: dict[str, Any] = {"max_steps": max(trainer.max_steps, 0)}
        given |= self._settings | {"extra": schedulers | self._settings.get("extra", {})}
        self._checkpointer = Checkpointer(pl_module, optimizers[0], **given)
        self._began = self._step = self._checkpointer.restore()
        if self._began:
            trainer.fit_loop.load_state_dict(self._checkpointer.position["loops"])

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002
        """Pass over the batches of the epoch that were already trained on; Lightning has counted them."""
        seen = trainer.fit_loop.epoch_loop.batch_progress.current.ready if self._began else 0
        if self._checkpointer is not None and 0 < seen < trainer.num_training_batches:
            for _ in islice(trainer.fit_loop._data_fetcher.iterator, seen):
                pass
            # The loader has drawn a seed, as it had before the snapshot; at an epoch's end it had not.
            self._checkpointer.rewind_generators()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:  # noqa: ARG002
        """Take a snapshot, unless gradients are being accumulated."""
        if self._checkpointer is None or trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        position = {"loops": trainer.fit_loop.state_dict()}
        self._checkpointer.step(self._step, loss, position=position, epoch=float(trainer.current_epoch))

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002
        """Say the last word."""
        if self._checkpointer is not None:
            self._checkpointer.close()
