"""ZeRO stage 3: each rank holds an equal part of every parameter, padded parameter by parameter.

The parts of a sub-group's parameters lie one after the other in a flat tensor. Written for deepspeed 0.19.8, of whose
optimizer it reads the lists named here; `tests/e2e/test_checkpoint_state.py` fails when a later release differs.
"""

from __future__ import annotations

from typing import Any

from llmtrain_trainer.checkpoint.flats import Flat, Range


class PartitionedParameters:
    """DeepSpeedZeroOptimizer_Stage3."""

    def __init__(self, engine: Any, names: dict[int, str], rank: int) -> None:
        self._optimizer = engine.optimizer
        self._names, self._rank = names, rank
        self._held = [self._flat(group) for group in range(len(self._optimizer.fp16_groups))]

    def held(self) -> list[Flat]:
        """What this rank has to fill."""
        return self._held

    def owned(self) -> list[Flat]:
        """What this rank saves: over all ranks everything once."""
        return self._held

    def begin_load(self) -> None:
        """Drop the whole parameters that small ones are kept as besides their parts. Collective."""
        self._optimizer.checkpoint_event_prologue()

    def end_load(self) -> None:
        """Derive the model's weights from the masters. Collective."""
        halves = self._optimizer.fp16_partitioned_groups_flat
        for group, (half, master) in enumerate(zip(halves, self._optimizer.fp32_partitioned_groups_flat, strict=True)):
            half.data.copy_(master.data)  # in fp32 the two are one
            self._optimizer._unflatten_partitioned_parameters(group)
        self._optimizer.checkpoint_event_epilogue()

    def _flat(self, group: int) -> Flat:
        optimizer, weights = self._optimizer, self._optimizer.fp16_groups[group]
        ranges, offset = [], 0
        for weight in weights:
            start, stop = bounds(weight, self._rank)
            if start < stop:
                ranges.append(Range(self._names[id(weight)], start, stop, offset))
            offset += weight.partition_numel()
        # With only a part of the optimizer offloaded, the sub-groups that are not have an optimizer of their own.
        device = getattr(optimizer, "subgroup_to_device", {}).get(group, "cpu")
        inner = optimizer.optimizer if device == "cpu" else optimizer.backup_optimizer
        names = tuple(self._names[id(weight)] for weight in weights)
        return Flat(optimizer.fp32_partitioned_groups_flat[group], inner, names, tuple(ranges))


def bounds(weight: Any, rank: int) -> tuple[int, int]:
    """The elements [start, stop) of the parameter that `rank` holds; none if it holds only padding."""
    size = weight.partition_numel()
    return rank * size, min((rank + 1) * size, weight.ds_numel)
