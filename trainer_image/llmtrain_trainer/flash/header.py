"""What a snapshot says of itself, as stored beside its data. Pure.

    <xxh3-128 of the rest>\n<fixed part>\n<changing part>

Both parts are JSON. The fixed part (segments, shapes, model) is the same at every step, so that it is encoded once and
written as it is; that keeps publishing a snapshot within a fraction of a millisecond.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from llmtrain_trainer.checkpoint.layout import LayoutError, Segment, data_bytes
from llmtrain_trainer.checkpoint.manifest import Damaged, NewerFormat, digest

FORMAT: Final = 1
CHUNK: Final = 2**18
"""Bytes of a snapshot under one checksum: what a core's cache holds, so that a chunk is proved and copied in one go."""


@dataclass(frozen=True, slots=True, order=True)
class Edition:
    """Which snapshot: shards of one edition go together, and no others.

    The same step of two rounds may differ in its last bits. Editions are compared by step, then round.
    """

    step: int
    round: int
    world_size: int


@dataclass(frozen=True, slots=True)
class Fixed:
    """What all snapshots of a rank in one round have in common. `engine` and `model` are JSON."""

    job_uid: str
    segments: tuple[Segment, ...]
    engine: dict[str, Any]
    model: dict[str, Any]

    def encode(self) -> bytes:
        """For `encode`."""
        return _json(
            {
                "formatVersion": FORMAT,
                "jobUid": self.job_uid,
                "segments": [segment.to_json() for segment in self.segments],
                "engine": self.engine,
                "model": self.model,
            }
        )


@dataclass(frozen=True, slots=True)
class Header:
    """One snapshot of `rank`. `engine` is the changing rest of the engine's state, `training` where training stands,
    `rng` the rank's generators: all JSON."""

    edition: Edition
    rank: int
    fixed: Fixed
    engine: dict[str, Any]
    training: dict[str, Any]
    rng: dict[str, Any]

    @property
    def size(self) -> int:
        """Bytes of data."""
        return data_bytes(self.fixed.segments)

    @property
    def state(self) -> dict[str, Any]:
        """As a durable checkpoint's manifest has it."""
        return {"engine": self.fixed.engine | self.engine, "training": self.training, "model": self.fixed.model}


def encode(header: Header, fixed: bytes) -> bytes:
    """The header's file; `fixed` is `header.fixed.encode()`."""
    changing = _json(
        {
            "step": header.edition.step,
            "round": header.edition.round,
            "worldSize": header.edition.world_size,
            "rank": header.rank,
            "engine": header.engine,
            "training": header.training,
            "rng": header.rng,
        }
    )
    rest = fixed + b"\n" + changing
    return digest(rest).encode() + b"\n" + rest


def decode(data: bytes, name: str) -> Header:
    """The header in the file `name`. Raises `Damaged` or `NewerFormat`."""
    stored, _, rest = data.partition(b"\n")
    if not rest or digest(rest).encode() != stored:
        raise Damaged(name, "the header does not have its digest")
    first, _, second = rest.partition(b"\n")
    fixed_part, changing_part = json.loads(first), json.loads(second)
    if fixed_part.get("formatVersion", 0) > FORMAT:
        raise NewerFormat(name, fixed_part["formatVersion"])
    match fixed_part, changing_part:
        case (
            {"jobUid": str(job), "segments": [*segments], "engine": dict(shapes), "model": dict(model)},
            {
                "step": int(step),
                "round": int(number),
                "worldSize": int(world_size),
                "rank": int(rank),
                "engine": dict(engine),
                "training": dict(training),
                "rng": dict(rng),
            },
        ):
            try:
                placed = tuple(Segment.from_json(raw) for raw in segments)
            except LayoutError as error:
                raise Damaged(name, str(error)) from error
            fixed = Fixed(job, placed, shapes, model)
            return Header(Edition(step, number, world_size), rank, fixed, engine, training, rng)
    raise Damaged(name, "it does not say what a header must say")


def _json(content: dict[str, Any]) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()
