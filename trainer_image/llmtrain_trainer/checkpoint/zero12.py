"""ZeRO stages 1 and 2: each rank updates an equal part of every parameter group, flattened and padded as a whole.

Written for deepspeed 0.19.8, of whose optimizers it reads the lists named here; `tests/e2e/test_checkpoint_state.py`
fails when a later release lays its state out otherwise.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any

from llmtrain_trainer.checkpoint import flats
from llmtrain_trainer.checkpoint.flats import Flat


class PartitionedGroups:
    """DeepSpeedZeroOptimizer, and the BF16_Optimizer that stands in for it when gradients accumulate in fp32."""

    def __init__(self, engine: Any, names: dict[int, str], rank: int) -> None:
        self._optimizer = engine.optimizer
        self._names, self._rank = names, rank
        self._held = [self._flat(group, master) for group, master in enumerate(self._masters())]

    def held(self) -> list[Flat]:
        """What this rank has to fill."""
        return self._held

    def owned(self) -> list[Flat]:
        """What this rank saves: over all ranks everything once."""
        return self._held

    def begin_load(self) -> None:
        """Before anything is filled."""

    def end_load(self) -> None:
        """Derive the model's weights from the masters. Collective."""
        self._optimizer.update_lp_params()
        self._optimizer._hp_optimizer_states_linked = False  # deepspeed.utils.safe_get_* then look at the new state

    def _masters(self) -> list[Any]:
        zero = hasattr(self._optimizer, "single_partition_of_fp32_groups")
        masters: list[Any] = (
            self._optimizer.single_partition_of_fp32_groups if zero else self._optimizer.fp32_groups_flat_partition
        )
        return masters

    def _flat(self, group: int, master: Any) -> Flat:
        weights, offsets = self._order(group)
        places = [
            (self._names[id(weight)], offset, weight.numel()) for weight, offset in zip(weights, offsets, strict=True)
        ]
        first = self._rank * master.numel()
        ranges = flats.cut(places, first, first + master.numel())
        return Flat(master, self._optimizer.optimizer, tuple(name for name, *_ in places), ranges)

    def _order(self, group: int) -> tuple[list[Any], list[int]]:
        """The parameters of a group as they lie in its flat tensor (round robin or not), and where each begins."""
        if hasattr(self._optimizer, "round_robin_bit16_groups"):
            return self._optimizer.round_robin_bit16_groups[group], self._optimizer.round_robin_bit16_offsets[group]
        weights = self._optimizer.bf16_groups[group]
        return weights, [0, *accumulate(weight.numel() for weight in weights)][:-1]
