"""How a plain torch model's tensors lie over the ranks: replicated (DDP), or FSDP2's shards.

A replicated tensor is on every rank, and each saves an even part of it. A DTensor that is split along its first
dimension is, flattened, a range on each rank, which saves it. Limits: one mesh dimension over all ranks; no FSDP1, no
ZeRO, whose shards lie elsewhere.
"""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DataParallel, DistributedDataParallel

from llmtrain_trainer.checkpoint.flats import Range
from llmtrain_trainer.checkpoint.layout import ITEM_BYTES
from llmtrain_trainer.checkpoint.pieces import dtype_name
from llmtrain_trainer.errors import ConfigError

_WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.")  # torch.compile, activation checkpointing


def unwrapped_model(model: torch.nn.Module) -> torch.nn.Module:
    """The user's own module. Raises `ConfigError` for a wrapper that keeps the weights elsewhere."""
    while True:
        if isinstance(model, DistributedDataParallel | DataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), torch.nn.Module):
            model = inner
        else:
            break
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        raise ConfigError("llmtrain_trainer.flash: FSDP1 is not supported; use fully_shard (FSDP2) or DDP")
    if hasattr(model, "zero_optimization_stage") or any(hasattr(weight, "ds_id") for weight in model.parameters()):
        raise ConfigError("llmtrain_trainer.flash: a DeepSpeed engine is not supported; use FSDP2 or DDP")
    return model


def unwrapped_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """torch's own. Raises `ConfigError` for one whose state is spread in its own way."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), torch.optim.Optimizer):  # Accelerate's
        optimizer = inner
    if type(optimizer).__name__ == "ZeroRedundancyOptimizer" or not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigError(
            f"llmtrain_trainer.flash: an optimizer of type {type(optimizer).__name__} is not supported; give one of "
            "torch.optim's kind, and spread its state by FSDP2 if it has to be spread"
        )
    return optimizer


def plain_name(name: str) -> str:
    """A parameter's name without what wrappers put into it."""
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The memory that this rank has of it."""
    mine: torch.Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return mine.detach()


def is_sharded(tensor: torch.Tensor) -> TypeGuard[DTensor]:
    """Whether each rank has a part of it, rather than all."""
    return isinstance(tensor, DTensor) and not tensor.placements[0].is_replicate()


def local_ranges(name: str, tensor: torch.Tensor) -> tuple[Range, ...]:
    """Which elements of the flattened tensor this rank has; none of one that has fewer rows than there are ranks."""
    size = local(tensor).numel()
    start = _rows(tensor)[0] * tensor.shape[1:].numel() if is_sharded(tensor) else 0
    return (Range(name, start, start + size, 0),) if size else ()


def check(name: str, tensor: torch.Tensor, world_size: int) -> None:
    """Raises `ConfigError` unless the tensor can be saved, and says what could."""
    if dtype_name(tensor.dtype) not in ITEM_BYTES:
        raise ConfigError(f"llmtrain_trainer.flash: {name} is of type {tensor.dtype}, which a snapshot cannot hold")
    if isinstance(tensor, DTensor):
        mesh, placements = tensor.device_mesh, tensor.placements
        over_all = mesh.ndim == 1 and mesh.size() == world_size
        if not (over_all and (placements[0].is_replicate() or (placements[0].is_shard(0) and _is_chunk(tensor)))):
            raise ConfigError(
                f"llmtrain_trainer.flash: {name} is placed as {placements} on {mesh}; supported are replicated "
                "tensors and Shard(0) on a mesh of one dimension over all workers, as fully_shard makes them"
            )
    if not local(tensor).is_contiguous():
        raise ConfigError(
            f"llmtrain_trainer.flash: {name} is not contiguous in memory and cannot be saved in a snapshot; convert "
            "the model with model.to(memory_format=torch.contiguous_format)"
        )


def _rows(tensor: DTensor) -> tuple[int, int]:
    """First and last of this rank's rows: Shard(0) cuts as `torch.chunk` does, the last ranks have fewer or none."""
    rows, mesh = tensor.shape[0], tensor.device_mesh
    each = -(-rows // mesh.size())
    first = min(rows, each * mesh.get_local_rank())
    return first, min(rows, first + each)


def _is_chunk(tensor: DTensor) -> bool:
    first, last = _rows(tensor)
    return local(tensor).shape[0] == last - first
