"""Real stores of snapshots without torch: known numbers, cut over ranks, in the slots that workers and agents use."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np

from llmtrain_trainer.checkpoint.layout import Segment, data_bytes, place
from llmtrain_trainer.flash import slot
from llmtrain_trainer.flash.header import Edition, Fixed, Header, encode
from llmtrain_trainer.flash.slot import Held, Slot
from llmtrain_trainer.flash.store import Store

JOB = "uid-a"
PARAMETERS = {"embed.weight": 400_000, "norm.weight": 7}
KINDS = ("master", "exp_avg")


@functools.cache
def numbers(edition: Edition) -> dict[tuple[str, str], np.ndarray]:
    """All of an edition's state, other numbers for each edition."""
    random = np.random.default_rng((edition.step, edition.round))
    return {
        (name, kind): random.standard_normal(size, dtype=np.float32)
        for name, size in PARAMETERS.items()
        for kind in KINDS
    }


def header(edition: Edition, rank: int, job_uid: str = JOB) -> Header:
    """What a rank's snapshot of an edition says of itself."""
    world = edition.world_size
    parts = [
        Segment(*key, len(values) * rank // world, len(values) * (rank + 1) // world, "float32")
        for key, values in numbers(edition).items()
    ]
    segments = place(part for part in parts if part.start < part.stop)
    fixed = Fixed(job_uid, segments, {"groups": 1}, {"config": {"layers": 2}})
    return Header(edition, rank, fixed, {"lr": 0.5}, training(edition.step), rng(edition.step, rank))


def content(edition: Edition, rank: int) -> bytes:
    """The data of that snapshot."""
    segments = header(edition, rank).fixed.segments
    data = bytearray(data_bytes(segments))
    for segment in segments:
        values = numbers(edition)[segment.parameter, segment.kind][segment.start : segment.stop]
        data[segment.offset : segment.end] = values.tobytes()
    return bytes(data)


def fill(room: Slot, edition: Edition, rank: int, *, proved: bool = True, job_uid: str = JOB) -> Held:
    """Put that snapshot into a slot; `proved`: with checksums, as the agent leaves it."""
    said, data = header(edition, rank, job_uid), content(edition, rank)
    room.withdraw()
    room.reserve(len(data))
    room.memory[: len(data)] = data
    held = room.publish(said, encode(said, said.fixed.encode()))
    if proved:
        slot.prove(held)
    return held


def store_in(directory: Path, job_uid: str = JOB) -> Store:
    """An empty store."""
    directory.mkdir(parents=True)
    return Store(directory, job_uid)


def spoil(held: Held, place: int) -> None:
    """Flip a bit of a snapshot's data."""
    with held.stem.with_suffix(slot.DATA).open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1]))


def training(step: int) -> dict[str, Any]:
    """Where training stands."""
    return {"step": step, "position": step * 24}


def rng(step: int, rank: int) -> dict[str, Any]:
    """A rank's generators."""
    return {"torch": f"{step}/{rank}"}
