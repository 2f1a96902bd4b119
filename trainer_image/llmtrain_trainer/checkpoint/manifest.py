"""What commits a checkpoint: the list of its shards, and the state that is the same on every rank. Pure.

Stored as `{"content": {...}, "digest": "<xxh3-128 of the content's canonical JSON>"}`. This envelope stays for ever;
`formatVersion` inside is what a later version raises. A manifest of a newer format is never taken for a damaged
one: passing over it would silently lose what it holds.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

import xxhash

from llmtrain_operator.contract import names
from llmtrain_trainer.errors import TrainerError

FORMAT: Final = 2
"""The newest version of the formats of manifest, shard and fence; 1 to this one are read."""

PLAIN: Final = 1
"""What is written wherever nothing of a later format is used, so that earlier versions can read it too."""


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
    `digest` is the xxh3-128 of that tail, in hexadecimal. `frozen`: the other part of the rank's state, which has not
    changed since an earlier save wrote it (format 2).
    """

    name: str
    size: int
    tail: int
    digest: str
    frozen: ShardEntry | None = None


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
    def parts(self) -> tuple[ShardEntry, ...]:
        """Every file with data: the ranks' shards in their order, then the frozen parts."""
        return (*self.shards, *self.frozen)

    @property
    def frozen(self) -> tuple[ShardEntry, ...]:
        """The frozen parts of those ranks that have one."""
        return tuple(shard.frozen for shard in self.shards if shard.frozen)

    @property
    def size(self) -> int:
        """Bytes of all parts."""
        return sum(part.size for part in self.parts)


def encode(manifest: Manifest) -> bytes:
    """The file's bytes. Raises TypeError for a state that is no JSON."""
    return seal(
        {
            "formatVersion": FORMAT if manifest.frozen else PLAIN,
            "step": manifest.step,
            "fence": manifest.fence,
            "jobUid": manifest.job_uid,
            "round": manifest.round,
            "worldSize": manifest.world_size,
            "created": manifest.created,
            "shards": [entry_to_json(shard) for shard in manifest.shards],
            "state": manifest.state,
        }
    )


def decode(data: bytes, name: str) -> Manifest:
    """The manifest in the file `name`. Raises `Damaged` or `NewerFormat`."""
    match unseal(data, name):
        case {
            "step": int(step),
            "fence": int(fence),
            "jobUid": str(job_uid),
            "round": int(round_number),
            "worldSize": int(world_size),
            "created": float() | int() as created,
            "shards": [*shards],
            "state": dict(state),
        }:
            entries = tuple(entry_from_json(raw, name) for raw in shards)
            return Manifest(step, fence, job_uid, round_number, world_size, float(created), entries, state)
    raise Damaged(name, "it does not say what a manifest must say")


def entry_to_json(entry: ShardEntry) -> dict[str, Any]:
    """JSON; `entry_from_json` reads it."""
    plain = {"name": entry.name, "size": entry.size, "tail": entry.tail, "digest": entry.digest}
    return plain | ({"frozen": entry_to_json(entry.frozen)} if entry.frozen else {})


def entry_from_json(raw: Any, name: str) -> ShardEntry:
    """The entry in the file `name`. Raises `Damaged`."""
    match raw:
        case {"name": str(shard), "size": int(size), "tail": int(tail), "digest": str(found)} if 0 < tail <= size:
            frozen = raw.get("frozen")
            return ShardEntry(shard, size, tail, found, None if frozen is None else entry_from_json(frozen, name))
    raise Damaged(name, "it does not say of each shard what it must say")


def seal(content: dict[str, Any]) -> bytes:
    """JSON content with its digest around it. `content` has its `formatVersion`."""
    plain = json.loads(json.dumps(content))  # as it will be read: keys are text, tuples are lists
    return json.dumps({"content": plain, "digest": digest(_canonical(plain))}, separators=(",", ":")).encode()


def unseal(data: bytes, name: str) -> dict[str, Any]:
    """The content of `seal`, proved, of a format that is known. Raises `Damaged` or `NewerFormat`."""
    try:
        raw = json.loads(data)
    except ValueError as error:
        raise Damaged(name, f"it is not JSON: {error}" if data else "it is empty") from error
    match raw:
        case {"content": {"formatVersion": int(version)} as content, "digest": str(stored)}:
            if digest(_canonical(content)) != stored:
                raise Damaged(name, "its content does not have its digest")
            if version > FORMAT:
                raise NewerFormat(name, version)
            return dict(content)
    raise Damaged(name, "it has no content, format version and digest")


def digest(data: bytes | memoryview) -> str:
    """The xxh3-128 of `data` as 32 hexadecimal digits."""
    return xxhash.xxh3_128_hexdigest(data)


def _canonical(content: dict[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
