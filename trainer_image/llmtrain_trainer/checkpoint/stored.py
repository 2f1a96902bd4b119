"""What lies at a step of a storage, and what that is worth. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from llmtrain_trainer.checkpoint import manifest as manifests
from llmtrain_trainer.checkpoint.manifest import Damaged, Manifest
from llmtrain_trainer.checkpoint.storage import Entry

_STEP: Final = re.compile(r"step-(\d{12,})")
_PARTIAL: Final = r"(?:\.[0-9a-f]+\.partial)?"
_SHARD: Final = re.compile(rf"shard-(\d{{8,}})-\d{{5,}}\.bin{_PARTIAL}")
_FROZEN: Final = re.compile(rf"shard-(\d{{8,}})-\d{{5,}}-step-(\d{{12,}})\.bin{_PARTIAL}")
_MANIFEST: Final = re.compile(rf"manifest\.json{_PARTIAL}")

FROZEN: Final = "frozen"
"""The directory of what several checkpoints share."""

State = Literal["valid", "incomplete", "damaged", "newer"]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint as far as it can be told without reading its data.

    "valid": its manifest is intact and all shards are there in their sizes; "incomplete": no manifest (it is being
    written, or was given up); "damaged"; "newer": of a format that this version does not read. `why` says more unless
    it is valid; only then is there a `manifest`. `files` are all of ours at this step, also what was not finished.
    """

    step: int
    state: State
    why: str
    files: tuple[Entry, ...]
    manifest: Manifest | None

    @property
    def size(self) -> int:
        """Bytes stored."""
        return sum(file.size for file in self.files)

    @property
    def modified(self) -> float:
        """When something was last written, in seconds since the epoch; 0 if nothing is there."""
        return max((file.modified for file in self.files), default=0.0)


def step_directory(step: int) -> str:
    """Where a step's checkpoint goes."""
    return f"step-{step:012d}"


def shard_name(step: int, fence: int, rank: int) -> str:
    """Where a rank's shard goes. It has the fence in it: no two claims ever write the same shard."""
    return f"{step_directory(step)}/shard-{fence:08d}-{rank:05d}.bin"


def frozen_name(step: int, fence: int, rank: int) -> str:
    """Where the part of a rank's state goes that is not written again as long as it does not change."""
    return f"{FROZEN}/shard-{fence:08d}-{rank:05d}-{step_directory(step)}.bin"


def manifest_name(step: int) -> str:
    """Where the manifest goes."""
    return f"{step_directory(step)}/manifest.json"


def step_of(directory: str) -> int | None:
    """The step of a directory, None if it is not one of ours."""
    found = _STEP.fullmatch(directory)
    return int(found[1]) if found else None


def fence_of(name: str) -> int | None:
    """The claim under which a shard was written, finished or not; None for what is no shard."""
    found = _SHARD.fullmatch(_base(name))
    return int(found[1]) if found else None


def frozen_at(name: str) -> tuple[int, int] | None:
    """The claim and the step at which a frozen part was written, finished or not; None for what is none."""
    found = _FROZEN.fullmatch(_base(name))
    return (int(found[1]), int(found[2])) if found else None


def is_ours(name: str) -> bool:
    """Whether a file in a step's directory is part of a checkpoint, or was to become one."""
    return bool(_MANIFEST.fullmatch(_base(name)) or _SHARD.fullmatch(_base(name)))


def manifest_at(step: int, data: bytes) -> Manifest:
    """The manifest in `data`. Raises `Damaged` if it is not intact or that of another step, and `NewerFormat`."""
    name = manifest_name(step)
    manifest = manifests.decode(data, name)
    if manifest.step != step:
        raise Damaged(name, f"it is that of step {manifest.step}")
    return manifest


def misfits(manifest: Manifest, files: Sequence[Entry]) -> tuple[Damaged, ...]:
    """The manifest's parts that are not among `files` in their sizes."""
    sizes = {file.name: file.size for file in files}
    found = []
    for shard in manifest.parts:
        if shard.name not in sizes:
            found.append(Damaged(shard.name, "it is missing"))
        elif sizes[shard.name] != shard.size:
            found.append(Damaged(shard.name, f"it has {sizes[shard.name]} bytes instead of {shard.size}"))
    return tuple(found)


def _base(name: str) -> str:
    return name.rpartition("/")[2]
