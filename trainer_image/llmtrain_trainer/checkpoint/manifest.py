"""What commits a checkpoint: the list of its shards, and the state that is the same on every rank. Pure.

Stored as `{"checkpoint": {...}, "digest": "<xxh3-128 of the checkpoint's canonical JSON>"}`. This envelope stays for
ever; `formatVersion` inside is what a later version raises. A manifest of a newer format is never taken for a damaged
one: passing over it would silently lose what it holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from llmtrain_operator.contract import names
from llmtrain_trainer.errors import TrainerError

FORMAT: Final = 1
"""Version of the formats of manifest, shard and fence that this code writes; it reads 1 to this one."""


class Damaged(Exception):  # noqa: N818 - it says what happened
    """A stored file is not what was written. `name` is the file's, `why` says what is wrong with it."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"{name}: {why}")
        self.name, self.why = name, why


class NewerFormat(TrainerError):  # noqa: N818 - as above
    """A stored file of a format that this version does not know; the message names both."""

    def __init__(self, name: str, found: int) -> None:
        super().__init__(
            names.REASON_CHECKPOINT_MISMATCH,
            f"{name} has format {found}, and this version of llmtrain reads formats up to {FORMAT}: "
            "use the version that wrote it, or a later one",
        )


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """What the manifest says of a shard: where it is, and how it is proved.

    `name` is relative to the storage. `size` and `tail` are bytes: of the file, and of index and footer at its end;
    `digest` is the xxh3-128 of that tail, in hexadecimal.
    """

    name: str
    size: int
    tail: int
    digest: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """A committed checkpoint.

    `shards` is in the order of ranks; `created` is in seconds since the epoch; `state` is JSON.
    """

    step: int
    fence: int
    job_uid: str
    round: int
    world_size: int
    created: float
    shards: tuple[ShardEntry, ...]
    state: dict[str, Any]

    @property
    def size(self) -> int:
        """Bytes of all shards."""
        return sum(shard.size for shard in self.shards)


def encode(manifest: Manifest) -> bytes:
    """The file's bytes."""
    raise NotImplementedError


def decode(data: bytes, name: str) -> Manifest:
    """The manifest in the file `name`. Raises `Damaged` or `NewerFormat`."""
    raise NotImplementedError
