"""The training state of a plain torch model and optimizer: what a snapshot holds of a user's own script.

Guarantee: weights, optimizer state, buffers, hyperparameters of the parameter groups, and the objects given beside
them come back bit for bit, at any world size; nothing restored shares memory with where it came from.
Limits: replicated and FSDP2's tensors (`spread.py`); optimizer state that is one element per weight or one number per
parameter (not Adafactor's); no gradients, for a step boundary is the only place to save or load. Buffers are rank 0's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch

from llmtrain_operator.contract import names
from llmtrain_trainer.checkpoint import flats, optimizer_state, rng
from llmtrain_trainer.checkpoint.flats import Flat, flattened
from llmtrain_trainer.checkpoint.layout import share
from llmtrain_trainer.checkpoint.pieces import MASTER, WEIGHTS, Fill, Piece, dtype_name
from llmtrain_trainer.errors import ConfigError, TrainerError
from llmtrain_trainer.flash import plain, spread
from llmtrain_trainer.flash.spread import local


class Stateful(Protocol):
    """A learning-rate scheduler, a gradient scaler, a sampler, ..."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any: ...


class TorchState:
    """One rank's part; a `flash.state.State`. `objects` have to be alike on all ranks, and their state plain.

    Raises `ConfigError` for what cannot be saved.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        objects: Mapping[str, Stateful],
        rank: int,
        world_size: int,
    ) -> None:
        self._rank, self._world_size, self._objects = rank, world_size, dict(objects)
        module, self._optimizer = spread.unwrapped_model(model), spread.unwrapped_optimizer(optimizer)
        weights = {spread.plain_name(name): weight for name, weight in module.named_parameters()}
        known = {id(weight): name for name, weight in weights.items()}
        trained = dict(_trained(self._optimizer, known))
        self._frozen = {name: weight for name, weight in weights.items() if name not in trained and weight.numel()}
        self._buffers = list(_buffers(module))
        for name, tensor in (trained | self._frozen | self._live_buffers()).items():
            spread.check(name, tensor, world_size)
        self._held = [
            Flat(weight, self._optimizer, (name,), spread.local_ranges(name, weight))
            for name, weight in trained.items()
            if weight.numel()
        ]
        self._shapes = {name: list(weight.shape) for name, weight in trained.items()}

    def pieces(self) -> list[Piece]:
        """What this rank owns: over all ranks each element exactly once. Views of live state."""
        return self._trained_pieces(self._owned()) + self._owned_untrained()

    def expected(self) -> list[Piece]:
        """Pieces as many and as large as `pieces` will be once the optimizer has made its state."""
        if any(flat.state for flat in self._held):
            return self.pieces()
        masters = list(_masters(self._owned()))
        return masters * (1 + optimizer_state.expected_tensors(self._held)) + self._owned_untrained()

    def identity(self) -> tuple[int, ...]:
        """Where the state lies in memory."""
        tensors: list[Any] = [tensor for flat in self._held for tensor in (flat.master, *flat.state.values())]
        tensors += [*self._frozen.values(), *self._live_buffers().values()]
        return tuple(local(tensor).data_ptr() for tensor in tensors if isinstance(tensor, torch.Tensor))

    def shapes(self) -> dict[str, Any]:
        """The shape of each trained parameter; shape and element type of each frozen one and each buffer."""
        weights = {
            name: {"shape": list(tensor.shape), "dtype": dtype_name(tensor.dtype)}
            for name, tensor in (self._frozen | self._live_buffers()).items()
        }
        return {"parameters": self._shapes, "weights": weights}

    def numbers(self) -> dict[str, Any]:
        """The optimizer's numbers, its groups' hyperparameters, and the objects' state. Raises `ConfigError`."""
        return {
            "optimizer": optimizer_state.describe(self._held),
            "groups": [_settings(group) for group in self._optimizer.param_groups],
            "objects": {
                name: plain.to_json(item.state_dict(), f"llmtrain_trainer.flash: the state of {name}")
                for name, item in self._objects.items()
            },
        }

    def rng(self) -> dict[str, Any]:
        """This rank's random generators, as JSON."""
        return rng.describe()

    def load_rng(self, stored: dict[str, Any]) -> None:
        """Go on with the generators of `rng()`."""
        rng.load(stored)

    def reseed(self, step: int) -> None:
        """Other numbers than those already drawn, where another world size has other ranks."""
        torch.manual_seed(torch.initial_seed() ^ (step << 32))

    def load(self, scalars: dict[str, Any], fill: Fill) -> None:
        """See `State.load`. Raises `CheckpointMismatch`, before anything is changed, if the script is another."""
        self._check_same_script(scalars)
        optimizer_state.prepare(self._held, scalars["optimizer"])
        fill(self._trained_pieces(self._held) + self._untrained_pieces())
        for group, stored in zip(self._optimizer.param_groups, scalars["groups"], strict=True):
            _set(group, plain.from_json(stored))
        for name, item in self._objects.items():
            item.load_state_dict(plain.from_json(scalars["objects"][name]))

    def _owned(self) -> list[Flat]:
        shards = [flat for flat in self._held if spread.is_sharded(flat.master)]
        replicated = [flat for flat in self._held if not spread.is_sharded(flat.master)]
        return shards + flats.shared(replicated, self._rank, self._world_size)

    def _trained_pieces(self, part: Sequence[Flat]) -> list[Piece]:
        pieces = list(_masters(part))
        for kind, tensors in optimizer_state.tensor_states(self._held, part).items():
            pieces += [piece for flat, tensor in tensors for piece in flat.pieces(kind, local(tensor))]
        return pieces

    def _untrained_pieces(self) -> list[Piece]:
        return _pieces(self._frozen) + _pieces(self._live_buffers())

    def _owned_untrained(self) -> list[Piece]:
        shards = {name: weight for name, weight in self._frozen.items() if spread.is_sharded(weight)}
        whole = _pieces({name: weight for name, weight in self._frozen.items() if name not in shards})
        parts = [
            Piece(whole[index].parameter, WEIGHTS, start, whole[index].tensor[start:stop])
            for index, start, stop in share([piece.tensor.numel() for piece in whole], self._rank, self._world_size)
        ]
        return _pieces(shards) + parts + (_pieces(self._live_buffers()) if self._rank == 0 else [])

    def _live_buffers(self) -> dict[str, torch.Tensor]:
        """Looked up anew: a module may put another tensor in a buffer's place."""
        found = {name: module._buffers[key] for name, module, key in self._buffers}
        return {name: buffer for name, buffer in found.items() if buffer is not None and buffer.numel()}

    def _check_same_script(self, stored: dict[str, Any]) -> None:
        mine = self.shapes() | _outline(self._optimizer.param_groups, self._objects)
        theirs = stored | _outline(stored["groups"], stored["objects"])
        for kind, here in mine.items():
            there = theirs[kind]
            found = {name: (there.get(name, "absent"), here.get(name, "absent")) for name in there.keys() | here.keys()}
            different = sorted(name for name, (then, now) in found.items() if then != now)
            if different:
                told = "; ".join(
                    f"{name} is {found[name][0]} there and {found[name][1]} here" for name in different[:3]
                )
                raise TrainerError(
                    names.REASON_CHECKPOINT_MISMATCH,
                    f"the snapshots in memory are of another script: {len(different)} of its {kind} differ ({told}); "
                    "start a new job for another model",
                )


def _trained(optimizer: torch.optim.Optimizer, known: Mapping[int, str]) -> Iterator[tuple[str, torch.Tensor]]:
    for group in optimizer.param_groups:
        for weight in group["params"]:
            if id(weight) not in known:
                raise ConfigError(
                    f"llmtrain_trainer.flash: the optimizer updates a parameter of shape {list(weight.shape)} that is "
                    "none of the model's; give one module that holds all of them, such as a ModuleList"
                )
            yield known[id(weight)], weight


def _buffers(module: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module, str]]:
    """(name, module, key in it) of each persistent buffer."""
    for prefix, inner in module.named_modules():
        for key in inner._buffers:
            if key not in inner._non_persistent_buffers_set:
                yield spread.plain_name(f"{prefix}.{key}" if prefix else key), inner, key


def _outline(groups: Sequence[Any], objects: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What there has to be as many of, to compare by name."""
    return {
        "groups": {f"group {number}": "present" for number in range(len(groups))},
        "objects": dict.fromkeys(objects, "present"),
    }


def _masters(part: Sequence[Flat]) -> Iterator[Piece]:
    for flat in part:
        yield from flat.pieces(MASTER, local(flat.master))


def _pieces(tensors: Mapping[str, torch.Tensor]) -> list[Piece]:
    return [
        Piece(name, WEIGHTS, part.start, flattened(local(tensor), name))
        for name, tensor in tensors.items()
        for part in spread.local_ranges(name, tensor)
    ]


def _settings(group: Mapping[str, Any]) -> dict[str, Any]:
    """What of a parameter group is plain; the rest is the script's."""
    settings = {}
    for key, value in group.items():
        try:
            settings[key] = plain.to_json(value, key) if key != "params" else None
        except ConfigError:
            continue
    del settings["params"]
    return settings


def _set(group: dict[str, Any], stored: Mapping[str, Any]) -> None:
    for key, value in stored.items():
        present = group.get(key)
        if isinstance(present, torch.Tensor):  # a learning rate that a compiled step reads
            present.fill_(float(value))
        else:
            group[key] = value
