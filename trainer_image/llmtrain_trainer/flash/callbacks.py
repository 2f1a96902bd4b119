"""Snapshots for scripts that leave the loop to Hugging Face's Trainer or to Lightning, or that use Accelerate.

    Trainer(..., callbacks=[llmtrain_trainer.flash.callbacks.hugging_face()]).train()

Guarantee: model, optimizer, scheduler, step and random generators come back; batches that were already trained on are
not trained on again, as far as the framework can be told so (each function says how far). `settings` are those of
`Checkpointer`. The frameworks are imported when they are asked for.
"""

from __future__ import annotations

from typing import Any

from llmtrain_trainer.flash.checkpointer import Checkpointer


def accelerate_checkpointer(
    accelerator: Any, model: Any, optimizer: Any, scheduler: Any = None, **settings: Any
) -> Checkpointer:
    """A `Checkpointer` of what `accelerator.prepare` gave; the gradient scaler of fp16 is saved too.

    Call its `step` where `accelerator.sync_gradients` holds. The data's position is the script's: go on with
    `accelerator.skip_first_batches`.
    """
    extra = dict(settings.pop("extra", {}))
    if accelerator.scaler is not None:
        extra["scaler"] = accelerator.scaler
    return Checkpointer(model, optimizer, scheduler=scheduler, extra=extra, **settings)


def hugging_face(**settings: Any) -> Any:
    """A `transformers.TrainerCallback`.

    Batches already seen are skipped (they are loaded all the same), in the order of the same epoch. Limits: an
    IterableDataset of unknown length begins anew; with gradient accumulation the batches of an epoch have to be a
    multiple of it; fp16's gradient scaler and the log's history are not kept; the loss reported is the last one logged.
    """
    from llmtrain_trainer.flash.hugging_face_callback import FlashCallback

    return FlashCallback(settings)


def lightning(**settings: Any) -> Any:
    """A `lightning.pytorch.Callback`, for automatic optimization with one optimizer.

    Lightning's own account of epochs and batches is kept beside the snapshot, and batches already seen are passed over
    (they are loaded all the same). Limit: their order is the same only if the sampler's is a function of the epoch, as
    that of Lightning's DistributedSampler, or none (shuffle=False); the state of a loader that has one is not kept.
    """
    from llmtrain_trainer.flash.lightning_callback import FlashCallback

    return FlashCallback(settings)
