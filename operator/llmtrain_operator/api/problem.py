"""A finding about a spec, in words that a user can act on."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a spec. `path` is as the user wrote it: `spec.deepspeed.config.zero_optimisation`."""

    path: str
    value: Any
    message: str
    remedy: str


def unknown_key(path: str, key: str, value: Any, known: Iterable[str], what: str) -> Problem:
    """The problem of `key` below `path`, which is none of `known`, with a guess at what was meant."""
    close = difflib.get_close_matches(key, sorted(known), n=1)
    remedy = f"Did you mean {close[0]}?" if close else "Remove it"
    return Problem(f"{path}.{key}", value, f"{what} has no {key}", remedy)
