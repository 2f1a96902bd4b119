"""The state that a torch optimizer keeps per weight (moments) and per parameter (step counts), read and made anew.

Optimizers make their state in the first step, so there may be none on either side of a save and load: state that the
checkpoint lacks is removed from the engine, and state that the engine lacks is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from llmtrain_operator.contract import names
from llmtrain_trainer.checkpoint.flats import Flat
from llmtrain_trainer.checkpoint.pieces import dtype_name
from llmtrain_trainer.errors import ConfigError, TrainerError

Number = int | float


def describe(held: Sequence[Flat]) -> dict[str, Any]:
    """As JSON: the optimizer's class, the element type of each tensor state, and every number.

    A number is {dtype, value, others}: the value of all parameters but for the `others`, by name.
    """
    tensors = {kind: dtype_name(tensor.dtype) for kind, tensor in _example(held).items()}
    kinds = sorted({kind for flat in held for kind in _numbers(flat)})
    numbers = {kind: _described_number(kind, held) for kind in kinds}
    return {"type": type(held[0].optimizer).__name__, "tensors": tensors, "numbers": numbers}


def expected_tensors(held: Sequence[Flat]) -> int:
    """How many tensors per weight the optimizer will keep, where it has none yet: a good guess, by its settings."""
    if not held:
        return 0
    settings = held[0].optimizer.defaults
    if "betas" in settings:  # the Adam family: a first and a second moment
        return 3 if settings.get("amsgrad") else 2
    if "alpha" in settings:  # RMSprop
        return 1 + bool(settings.get("momentum")) + bool(settings.get("centered"))
    return 1 if settings.get("momentum", 1) else 0


def tensor_states(held: Sequence[Flat], flats: Sequence[Flat]) -> dict[str, list[tuple[Flat, torch.Tensor]]]:
    """For each tensor state that any of `held` has: `flats` with theirs, zeros where one was never updated."""
    found = [(flat, _tensors(flat)) for flat in flats]
    return {
        kind: [
            (flat, tensors[kind] if kind in tensors else torch.zeros_like(flat.master, dtype=example.dtype))
            for flat, tensors in found
        ]
        for kind, example in _example(held).items()
    }


def prepare(held: Sequence[Flat], stored: dict[str, Any]) -> None:
    """Give every flat the state that `describe` found, numbers and all; the tensors still have to be filled.

    Raises `CheckpointMismatch` if the optimizer is another, or counts steps for several parameters at once that have
    had different numbers of them.
    """
    kind, stored_kind = type(held[0].optimizer).__name__, stored["type"]
    if kind != stored_kind and (stored["tensors"] or stored["numbers"]):
        raise TrainerError(
            names.REASON_CHECKPOINT_MISMATCH,
            f"spec.training.optimizer.type: the checkpoint has the state of {stored_kind}, which {kind} cannot use; go "
            "on with the same optimizer, or give the new job another storage and start it from an exported model",
        )
    for flat, made in [(flat, _made(flat, stored)) for flat in held]:  # all of them first: one may be refused
        flat.optimizer.state.pop(flat.master, None)
        if made:
            flat.optimizer.state[flat.master] = made


def _made(flat: Flat, stored: dict[str, Any]) -> dict[str, Any]:
    tensors = {kind: _tensor(flat, kind, getattr(torch, dtype)) for kind, dtype in stored["tensors"].items()}
    return tensors | {kind: _number(flat, kind, number) for kind, number in stored["numbers"].items()}


def _is_number(flat: Flat, kind: str, value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.dim() == 0 and (kind == "step" or flat.master.dim() > 0)
    return isinstance(value, int | float)


def _tensors(flat: Flat) -> dict[str, torch.Tensor]:
    found = {}
    for kind, value in flat.state.items():
        if value is None or _is_number(flat, kind, value):
            continue
        if not isinstance(value, torch.Tensor) or value.shape != flat.master.shape:
            raise ConfigError(
                f"spec.deepspeed.config: {type(flat.optimizer).__name__} keeps a state {kind!r} of "
                f"{flat.parameters[0]} that is not one element per weight, and cannot be saved in checkpoints"
            )
        found[kind] = value
    return found


def _numbers(flat: Flat) -> dict[str, Any]:
    return {kind: value for kind, value in flat.state.items() if _is_number(flat, kind, value)}


def _example(held: Sequence[Flat]) -> dict[str, torch.Tensor]:
    """One tensor of each kind."""
    return {kind: tensor for flat in held for kind, tensor in _tensors(flat).items()}


def _described_number(kind: str, held: Sequence[Flat]) -> dict[str, Any]:
    dtype = "int"
    values: dict[str, Number] = {}
    for flat in held:
        value = _numbers(flat).get(kind, 0)  # never updated: as before the first step
        if isinstance(value, torch.Tensor):
            dtype, value = dtype_name(value.dtype), value.item()
        elif isinstance(value, float):
            dtype = "float"
        values |= dict.fromkeys(flat.parameters, value)
    usual = max(values.values())
    return {"dtype": dtype, "value": usual, "others": {name: value for name, value in values.items() if value != usual}}


def _tensor(flat: Flat, kind: str, dtype: torch.dtype) -> torch.Tensor:
    """The state's tensor if it is there already, or zeros."""
    present = flat.state.get(kind)
    if isinstance(present, torch.Tensor) and present.shape == flat.master.shape and present.dtype == dtype:
        return present
    return torch.zeros_like(flat.master, dtype=dtype, requires_grad=False)


def _number(flat: Flat, kind: str, stored: dict[str, Any]) -> torch.Tensor | Number:
    values: dict[Number, str] = {stored["others"].get(name, stored["value"]): name for name in flat.parameters}
    if len(values) > 1:
        told = ", ".join(f"{value:g} for {name}" for value, name in values.items())
        raise TrainerError(
            names.REASON_CHECKPOINT_MISMATCH,
            f"spec.deepspeed.stage: the optimizer's {kind} in the checkpoint is {told}, which only stage 0 can keep "
            "apart; go on with stage 0",
        )
    value = next(iter(values))
    if stored["dtype"] in ("int", "float"):
        return value
    defaults = flat.optimizer.defaults
    device = flat.master.device if defaults.get("capturable") or defaults.get("fused") else torch.device("cpu")
    return torch.tensor(value, dtype=getattr(torch, stored["dtype"]), device=device)
