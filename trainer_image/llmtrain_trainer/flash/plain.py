"""State that is no tensor as JSON, and back as it was: what `state_dict()` of schedulers, scalers and the like gives.

Beside JSON's own types: tuples, Counters, dictionaries with other keys than strings, tensors of one number. Pure.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

import torch

from llmtrain_trainer.checkpoint.pieces import dtype_name
from llmtrain_trainer.errors import ConfigError

_TAG: Final = "__llmtrain__"


def to_json(value: Any, what: str) -> Any:
    """For `from_json`. Raises `ConfigError`, which names `what` and the place within it, for anything else."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, tuple):
        return {_TAG: "tuple", "of": _items(value, what)}
    if isinstance(value, list):
        return _items(value, what)
    if isinstance(value, dict):
        return _dictionary(value, what)
    if isinstance(value, torch.Tensor) and value.numel() == 1 and value.dim() == 0:
        return {_TAG: "number", "of": value.item(), "dtype": dtype_name(value.dtype)}
    raise ConfigError(
        f"{what} is a {type(value).__name__}, which a snapshot cannot hold: numbers, text, lists and dictionaries of "
        "them are possible; keep tensors in buffers of the model, and leave out what can be made anew"
    )


def from_json(value: Any) -> Any:
    """What `to_json` was given."""
    if isinstance(value, list):
        return [from_json(item) for item in value]
    if not isinstance(value, dict):
        return value
    match value.get(_TAG):
        case "tuple":
            return tuple(from_json(item) for item in value["of"])
        case "number":
            return torch.tensor(value["of"], dtype=getattr(torch, value["dtype"]))
        case "dictionary":
            return {from_json(key): from_json(item) for key, item in value["of"]}
        case "counter":
            return Counter({from_json(key): item for key, item in value["of"]})
    return {key: from_json(item) for key, item in value.items()}


def _items(values: Any, what: str) -> list[Any]:
    return [to_json(item, f"{what}[{number}]") for number, item in enumerate(values)]


def _dictionary(value: dict[Any, Any], what: str) -> dict[str, Any]:
    if not isinstance(value, Counter) and _TAG not in value and all(isinstance(key, str) for key in value):
        return {key: to_json(item, f"{what}[{key!r}]") for key, item in value.items()}
    pairs = [[to_json(key, f"a key of {what}"), to_json(item, f"{what}[{key!r}]")] for key, item in value.items()]
    return {_TAG: "counter" if isinstance(value, Counter) else "dictionary", "of": pairs}
