"""A DeepSpeed engine's training state: what this rank owns of it, and how it comes back at any world size and stage.

Guarantee: master weights and optimizer state come back bit for bit, whatever the world size and ZeRO stage they were
saved at, and the model's half-precision weights are those that the masters give. Nothing restored shares memory with
where it came from, and padding is neither saved nor read.
Limits: data parallelism only; optimizer state has to be one element per weight or one number per parameter (AdamW,
SGD, RMSprop, Adagrad, ... but not Adafactor); no gradients: a step boundary is the only place to save or load. Neither
learning rate nor schedule is saved: they are functions of the step. Persistent buffers are rank 0's.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.distributed

from llmtrain_operator.contract import names
from llmtrain_trainer.checkpoint import optimizer_state, rng, scaler
from llmtrain_trainer.checkpoint.flats import Flat
from llmtrain_trainer.checkpoint.pieces import Fill, Piece
from llmtrain_trainer.checkpoint.replicated import Replicated
from llmtrain_trainer.checkpoint.untrained import Untrained, shape
from llmtrain_trainer.checkpoint.zero3 import PartitionedParameters
from llmtrain_trainer.checkpoint.zero12 import PartitionedGroups
from llmtrain_trainer.errors import ConfigError, TrainerError

_COUNTERS = ("global_steps", "global_samples", "skipped_steps")


class Sharding(Protocol):
    """How a ZeRO stage spreads masters and optimizer state over the ranks."""

    def held(self) -> list[Flat]: ...
    def owned(self) -> list[Flat]: ...
    def begin_load(self) -> None: ...
    def end_load(self) -> None: ...


class EngineState:
    """What a checkpoint holds of `engine`. Every method is for step boundaries, where no gradient is pending.

    Raises `ConfigError` for an engine whose state cannot be saved.
    """

    def __init__(self, engine: Any) -> None:
        check_supported(engine)
        self._engine = engine
        self._rank, self._world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        self._sharding = self._make_sharding()
        trained = {name for flat in self._sharding.held() for name in flat.parameters}
        self._trained = {name: shape(weight) for name, weight in engine.module.named_parameters() if name in trained}
        self._untrained = Untrained(engine.module, trained, self._rank, self._world_size)

    def pieces(self) -> list[Piece]:
        """What this rank owns: over all ranks each element exactly once. Views of live state; not collective."""
        return self._trained_pieces(self._sharding.owned()) + self._untrained.owned()

    def scalars(self) -> dict[str, Any]:
        """The state that is no tensor, as JSON; the same on every rank. Not collective.

        `parameters` has the shape of each trained parameter, `weights` the shape and element type of each frozen one
        and each persistent buffer.
        """
        return self.shapes() | self.numbers()

    def shapes(self) -> dict[str, Any]:
        """The part of `scalars` that never changes."""
        return {"parameters": self._trained, "weights": self._untrained.describe()}

    def numbers(self) -> dict[str, Any]:
        """The part of `scalars` that changes with each step."""
        return {
            "optimizer": optimizer_state.describe(self._sharding.held()),
            "counters": {name: getattr(self._engine, name) for name in _COUNTERS},
            "lossScaler": scaler.describe(self._engine),
        }

    def identity(self) -> tuple[int, ...]:
        """Where the state lies in memory: `pieces` are the same views as long as this is the same."""
        tensors = [tensor for flat in self._sharding.held() for tensor in (flat.master, *flat.state.values())]
        tensors += [piece.tensor for piece in self._untrained.owned()]
        return tuple(tensor.data_ptr() for tensor in tensors if isinstance(tensor, torch.Tensor))

    def expected(self) -> list[Piece]:
        """Pieces as many and as large as `pieces` will be when the optimizer has made its state in the first step."""
        owned = self._sharding.owned()
        if any(flat.state for flat in owned):
            return self.pieces()
        masters = [piece for flat in owned for piece in flat.masters()]
        return masters * (1 + optimizer_state.expected_tensors(self._sharding.held())) + self._untrained.owned()

    def rng(self) -> dict[str, Any]:
        """This rank's random generators, as JSON: Python, numpy, torch on the CPU and the accelerator."""
        return rng.describe()

    def load_rng(self, stored: dict[str, Any]) -> None:
        """Go on with the generators of `rng()`."""
        rng.load(stored)

    def reseed(self, step: int) -> None:
        """Where another world size has other ranks: other numbers than those already drawn, as far as can be had."""
        torch.manual_seed(torch.initial_seed() ^ (step << 32))

    def load(self, scalars: dict[str, Any], fill: Fill) -> None:
        """Make the engine what `scalars()` and the stored pieces say. Collective.

        `fill` is called once, with every piece that this rank needs (not only those that it owns); it has to raise on
        all ranks or on none. What it raises passes through: the engine is then half filled, and must be loaded again
        or left. Raises `CheckpointMismatch`, before anything is changed, if the checkpoint is another model's.
        """
        self._check_same_model(scalars)
        self._sharding.begin_load()
        held = self._sharding.held()
        optimizer_state.prepare(held, scalars["optimizer"])
        fill(self._trained_pieces(held) + self._untrained.held())
        self._sharding.end_load()
        for name in _COUNTERS:
            setattr(self._engine, name, scalars["counters"][name])
        # DeepSpeed finds step boundaries by it, and how many micro-steps a step has depends on the world size.
        self._engine.micro_steps = self._engine.global_steps * self._engine.gradient_accumulation_steps()
        scaler.load(self._engine, scalars["lossScaler"])

    def _make_sharding(self) -> Sharding:
        parameter_names = {id(weight): name for name, weight in self._engine.module.named_parameters()}
        match self._engine.zero_optimization_stage():
            case 0:
                return Replicated(self._engine, parameter_names, self._rank, self._world_size)
            case 3:
                return PartitionedParameters(self._engine, parameter_names, self._rank)
        return PartitionedGroups(self._engine, parameter_names, self._rank)

    def _trained_pieces(self, flats: list[Flat]) -> list[Piece]:
        pieces = [piece for flat in flats for piece in flat.masters()]
        for kind, tensors in optimizer_state.tensor_states(self._sharding.held(), flats).items():
            pieces += [piece for flat, tensor in tensors for piece in flat.pieces(kind, tensor)]
        return pieces

    def _check_same_model(self, stored: dict[str, Any]) -> None:
        mine = self.scalars()
        for kind in ("parameters", "weights"):
            if stored[kind] != mine[kind]:
                different = sorted(
                    name
                    for name in stored[kind].keys() | mine[kind].keys()
                    if stored[kind].get(name) != mine[kind].get(name)
                )
                told = "; ".join(
                    f"{name} is {stored[kind].get(name, 'absent')} there and {mine[kind].get(name, 'absent')} here"
                    for name in different[:3]
                )
                raise TrainerError(
                    names.REASON_CHECKPOINT_MISMATCH,
                    f"spec.model: the checkpoint is of another model: {len(different)} of its {kind} differ ({told}); "
                    "give the job the model that the checkpoint was made with, or another storage",
                )


def check_supported(engine: Any) -> None:
    """Raises `ConfigError` if parts of the engine's state lie where they are not looked for."""
    optimizer, stage = engine.optimizer, engine.zero_optimization_stage()
    partitions = getattr(optimizer, "sub_group_partition_counts", [])
    unsupported = {
        "zero_optimization.offload_optimizer.device: nvme": getattr(optimizer, "swap_optimizer", False),
        "zero_optimization.offload_param.device: nvme": getattr(optimizer, "params_in_nvme_and_cpu", False),
        "zero_optimization.zenflow": getattr(optimizer, "zenflow", False),
        "zero_optimization.mics_shard_size": any(count != torch.distributed.get_world_size() for count in partitions),
        "zero_optimization.zero_quantized_nontrainable_weights": engine.zero_quantized_nontrainable_weights(),
        "optimizer fused by DeepSpeed": hasattr(optimizer, "fp32_groups_flat"),
        "tensor_parallel.autotp_size": engine.autotp_size() > 1,
        "mixture of experts": engine.has_moe_layers,
    }
    found = [name for name, present in unsupported.items() if present]
    if found:
        raise ConfigError(
            f"spec.deepspeed.config: {', '.join(found)} at stage {stage} cannot be saved in checkpoints; leave it out, "
            "or leave out spec.checkpoint.durable"
        )
