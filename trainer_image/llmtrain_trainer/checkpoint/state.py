"""A DeepSpeed engine's training state: what this rank owns of it, and how it comes back at any world size and stage.

Guarantee: master weights and optimizer state come back bit for bit, whatever the world size and ZeRO stage they were
saved at, and the model's half-precision weights are those that the masters give. Nothing restored shares memory with
where it came from, and padding is neither saved nor read.
Limits: data parallelism only; optimizer state has to be one element per weight or one number per parameter (AdamW,
SGD, RMSprop, Adagrad, ... but not Adafactor); no gradients: a step boundary is the only place to save or load.
"""

from __future__ import annotations

from typing import Any

from llmtrain_trainer.checkpoint.pieces import Fill, Piece


class EngineState:
    """What a checkpoint holds of `engine`. Every method is for step boundaries, where no gradient is pending."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine

    def pieces(self) -> list[Piece]:
        """What this rank owns: over all ranks each element exactly once. Views of live state; not collective."""
        raise NotImplementedError

    def scalars(self) -> dict[str, Any]:
        """The state that is no tensor, as JSON; the same on every rank. Not collective.

        `parameters` has each name's shape, `states` the names of the optimizer's tensor states (none before its
        first step).
        """
        raise NotImplementedError

    def rng(self) -> dict[str, Any]:
        """This rank's random generators, as JSON: Python, numpy, torch on the CPU and the accelerator."""
        raise NotImplementedError

    def load_rng(self, stored: dict[str, Any]) -> None:
        """Go on with the generators of `rng()`."""
        raise NotImplementedError

    def load(self, scalars: dict[str, Any], fill: Fill) -> None:
        """Make the engine what `scalars()` and the stored pieces say. Collective.

        `fill` is called once, with every piece that this rank needs (not only those that it owns). Raises
        `StateMismatch` if the checkpoint is another model's. What `fill` raises passes through; the engine is then
        half filled, and must be loaded again or left.
        """
        raise NotImplementedError
