"""Messages of `wire` as JSON and back, checked against their types."""

from __future__ import annotations

import dataclasses
import functools
import json
import types
import typing
from typing import Any, Literal, TypeVar


class WireError(ValueError):
    """A message that is not what the protocol says; the peer is wrong or much newer."""


M = TypeVar("M")


def encode(message: Any) -> str:
    """A message as compact JSON."""
    return json.dumps(dataclasses.asdict(message), separators=(",", ":"), allow_nan=True)


def decode(kind: type[M], text: str | bytes) -> M:
    """The message of type `kind` in `text`. Raises `WireError` if it is not one."""
    try:
        raw = json.loads(text)
    except ValueError as error:
        raise WireError(f"not JSON: {error}") from error
    return from_dict(kind, raw)


def from_dict(kind: type[M], raw: Any) -> M:
    """Build a dataclass from its dictionary form, ignoring unknown fields. Raises `WireError`."""
    value = _build(kind, raw, kind.__name__)
    return typing.cast("M", value)


def _build(kind: Any, raw: Any, path: str) -> Any:
    origin = typing.get_origin(kind)
    arguments = typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if raw is None and type(None) in arguments:
            return None
        return _build(next(a for a in arguments if a is not type(None)), raw, path)
    if origin is Literal:
        if raw not in arguments:
            raise WireError(f"{path}: {raw!r} is none of {', '.join(map(str, arguments))}")
        return raw
    if origin is tuple and isinstance(raw, list):
        kinds = arguments[:1] * len(raw) if ... in arguments else arguments[: len(raw)]
        return tuple(_build(each, item, f"{path}[{i}]") for i, (each, item) in enumerate(zip(kinds, raw, strict=True)))
    if origin is dict and isinstance(raw, dict):
        return {key: _build(arguments[1], item, f"{path}.{key}") for key, item in raw.items()}
    if dataclasses.is_dataclass(kind):
        return _build_record(kind, raw, path)
    if kind is float and isinstance(raw, int) and not isinstance(raw, bool):
        return float(raw)
    if kind in (int, float, str, bool) and type(raw) is kind:
        return raw
    raise WireError(f"{path}: {raw!r} is not {kind}")


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _build_record(kind: Any, raw: Any, path: str) -> Any:
    if not isinstance(raw, dict):
        raise WireError(f"{path}: not an object")
    hints = _hints(kind)
    known = {f.name for f in dataclasses.fields(kind)}
    values = {name: _build(hints[name], raw[name], f"{path}.{name}") for name in known & raw.keys()}
    try:
        return kind(**values)
    except TypeError as error:
        raise WireError(f"{path}: {error}") from error
