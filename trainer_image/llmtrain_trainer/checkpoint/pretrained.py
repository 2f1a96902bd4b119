"""Weights of a Hugging Face model directory in any storage, for a job that starts from another's finished model.

Guarantee: every parameter of the job's model is set, each from a tensor of its own shape, or an error names the first
that is not. Limits: safetensors only; each worker reads all of the files, one at a time into host memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

import torch

from llmtrain_operator.contract import names
from llmtrain_trainer.checkpoint.storage import Storage
from llmtrain_trainer.errors import TrainerError

_CONFIG: Final = "config.json"
_END: Final = ".safetensors"
_INDEX: Final = "model.safetensors.index.json"


def is_model(storage: Storage) -> bool:
    """Whether a Hugging Face model lies at the storage's top. Raises `StorageError`."""
    files = {entry.name for entry in storage.list().files}
    return _CONFIG in files and any(name.endswith(_END) for name in files)


def load_weights(model: torch.nn.Module, storage: Storage) -> None:
    """Set all of the model's parameters and persistent buffers. Raises `StorageError`, `CheckpointMismatch`."""
    targets = _targets(model)
    missing = set(targets)
    for name, tensor in _tensors(storage):
        if name not in targets:
            raise _mismatch(storage, f"{name}, of shape {list(tensor.shape)}, is not in this job's model")
        target = targets[name]
        if target.shape != tensor.shape:
            raise _mismatch(storage, f"{name} has the shape {list(tensor.shape)}, here it is {list(target.shape)}")
        target.copy_(tensor)
        missing -= {other for other, tied in targets.items() if tied is target}
    if missing:
        raise _mismatch(storage, f"{min(missing)}, of shape {list(targets[min(missing)].shape)}, is not in its files")


def _targets(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What to set by every name that it has; a tied parameter is the same object under several names."""
    owners: dict[int, torch.Tensor] = {}
    state: dict[str, Any] = model.state_dict(keep_vars=True)
    return {name: owners.setdefault(id(tensor), tensor.detach()) for name, tensor in state.items()}


def _tensors(storage: Storage) -> Iterator[tuple[str, torch.Tensor]]:
    from safetensors.torch import load

    for file in _files(storage):
        data = storage.read(file)
        if data is None:
            raise _mismatch(storage, f"{file} is missing")
        yield from sorted(load(data).items())


def _files(storage: Storage) -> list[str]:
    """The weights' files: those of the index if there is one, since other formats' may lie beside them."""
    index = storage.read(_INDEX)
    if index is not None:
        return sorted(set(json.loads(index)["weight_map"].values()))
    return sorted(entry.name for entry in storage.list().files if entry.name.endswith(_END))


def _mismatch(storage: Storage, what: str) -> TrainerError:
    return TrainerError(
        names.REASON_CHECKPOINT_MISMATCH,
        f"spec.checkpoint.restoreFrom: {storage.uri} is not a model of this job's shape: {what}; give spec.model the "
        "model's own architecture, or another model",
    )
