"""Flash checkpoints: the newest steps in the pod's memory, copied to a buddy's, and back.

Slots (`slot.py`) hold snapshots, a store (`store.py`) is a pod's directory of them. Workers take snapshots and restore
from them; agents keep the stores, copy them to each other and hand them out.

A script of one's own needs `Checkpointer` (`checkpointer.py`) and `callbacks`, for Hugging Face's Trainer, Accelerate
and Lightning. They are imported when they are asked for: an agent has to do without what they need.
"""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["Checkpointer", "callbacks"]


def __getattr__(name: str) -> Any:
    if name == "Checkpointer":
        return importlib.import_module("llmtrain_trainer.flash.checkpointer").Checkpointer
    if name == "callbacks":
        return importlib.import_module("llmtrain_trainer.flash.callbacks")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
