"""What in a storage is no longer needed. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from llmtrain_trainer.checkpoint import claims
from llmtrain_trainer.checkpoint.stored import Checkpoint, fence_of, frozen_at

_CLAIMS_KEPT: Final = 8


@dataclass(frozen=True, slots=True)
class Doomed:
    """Checkpoints that go whole, and shards that belong to none."""

    steps: tuple[int, ...]
    strays: tuple[str, ...]


def doomed(found: Sequence[Checkpoint], fence: int, keep: int, newest: int) -> Doomed:
    """What claim `fence`, which has just committed step `newest`, may remove of the checkpoints `found` (newest first).

    Kept are the newest `keep` (at least one) valid ones up to `newest`, everything newer than the oldest of them, and
    what a newer version wrote. One beyond `newest` does not count, however valid it looks: this round began before it,
    because its data turned out damaged. Strays are shards that no manifest names: those of earlier claims, whose rounds
    have ended, and those of this claim at steps before its newest commit, since saves follow one another.
    """
    valid = [checkpoint.step for checkpoint in found if checkpoint.state == "valid" and checkpoint.step <= newest]
    kept = valid[: max(1, keep)]
    steps, strays = [], []
    for checkpoint in found:
        if kept and checkpoint.step < kept[-1] and checkpoint.state != "newer":
            steps.append(checkpoint.step)
        elif checkpoint.state in ("valid", "incomplete"):
            given_up = bool(kept) and checkpoint.step < kept[0]
            strays += _strays(checkpoint, fence + 1 if given_up else fence)
    return Doomed(tuple(steps), tuple(strays))


def unnamed(found: Sequence[Checkpoint], frozen: Sequence[str], before: int) -> tuple[str, ...]:
    """Frozen parts of claims earlier than `before` that none of the checkpoints `found` names.

    All stay as long as there is a checkpoint of which it cannot be told what it names.
    """
    if any(checkpoint.state in ("damaged", "newer") for checkpoint in found):
        return ()
    named = {part.name for checkpoint in found if checkpoint.manifest for part in checkpoint.manifest.frozen}
    written = {name: frozen_at(name) for name in frozen}
    return tuple(name for name, when in written.items() if when and when[0] < before and name not in named)


def left_behind(found: Sequence[Checkpoint], fence: int) -> tuple[str, ...]:
    """Shards of rounds before claim `fence` that ended while they saved; no manifest of `found` names them."""
    whole = (checkpoint for checkpoint in found if checkpoint.state in ("valid", "incomplete"))
    return tuple(name for checkpoint in whole for name in _strays(checkpoint, fence))


def _strays(checkpoint: Checkpoint, before: int) -> list[str]:
    """Shards of claims earlier than `before` that the checkpoint's manifest does not name."""
    named = {shard.name for shard in checkpoint.manifest.shards} if checkpoint.manifest else set()
    fences = {file.name: fence_of(file.name) for file in checkpoint.files}
    return [name for name, fence in fences.items() if fence is not None and fence < before and name not in named]


def old_claims(names: Sequence[str], fence: int) -> list[str]:
    """Which of a storage's top files are claims too old to matter; the last few help to see what happened."""
    numbers = {name: claims.number_of(name.partition(".json")[0] + ".json") for name in names}
    return [name for name, number in numbers.items() if number is not None and number <= fence - _CLAIMS_KEPT]
