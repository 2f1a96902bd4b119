"""Ways in which a stored checkpoint gets damaged, done to the files of a step's directory."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

Damage = Callable[[Path, random.Random], set[str]]
"""Does it to one step's directory; the names of the files that are not what they were."""


def flip_a_bit(step: Path, chance: random.Random) -> set[str]:
    file = _any_file(step, chance)
    data = bytearray(file.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    file.write_bytes(data)
    return {file.name}


def flip_bits_of_the_manifest(step: Path, chance: random.Random) -> set[str]:
    file = step / "manifest.json"
    data = bytearray(file.read_bytes())
    for _ in range(chance.randint(1, 3)):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    file.write_bytes(data)
    return {file.name}


def change_a_digit_of_the_manifest(step: Path, chance: random.Random) -> set[str]:
    file = step / "manifest.json"
    text = file.read_text()
    place = chance.choice([found.start() for found in re.finditer(r"\d", text)])
    file.write_text(text[:place] + str((int(text[place]) + chance.randint(1, 9)) % 10) + text[place + 1 :])
    return {file.name}


def truncate(step: Path, chance: random.Random) -> set[str]:
    file = _any_file(step, chance)
    size = file.stat().st_size
    with file.open("r+b") as opened:
        opened.truncate(chance.randrange(1, size))
    return {file.name}


def empty(step: Path, chance: random.Random) -> set[str]:
    file = _any_file(step, chance)
    file.write_bytes(b"")
    return {file.name}


def extend(step: Path, chance: random.Random) -> set[str]:
    file = _any_file(step, chance)
    with file.open("ab") as opened:
        opened.write(chance.randbytes(chance.choice([1, 16, 4096])))
    return {file.name}


def remove(step: Path, chance: random.Random) -> set[str]:
    file = _any_shard(step, chance)
    file.unlink()
    return {file.name}


def zero_a_block(step: Path, chance: random.Random) -> set[str]:
    file = _any_file(step, chance)
    data = bytearray(file.read_bytes())
    begin = chance.randrange(len(data))
    length = min(chance.choice([8, 512, 4096]), len(data) - begin)
    data[begin : begin + length] = bytes(length)
    file.write_bytes(data)
    return {file.name}


def swap_blocks(step: Path, chance: random.Random) -> set[str]:
    """Two chunks of one shard in each other's place: each has its own checksum, at the wrong place."""
    file = _any_shard(step, chance)
    data = file.read_bytes()
    file.write_bytes(data[4096:8192] + data[:4096] + data[8192:])
    return {file.name}


def swap_shards(step: Path, chance: random.Random) -> set[str]:
    one, other = chance.sample(_shards(step), 2)
    kept = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(kept)
    return {one.name, other.name}


def stale_manifest(step: Path, chance: random.Random) -> set[str]:
    older = chance.choice(_other_steps(step))
    shutil.copyfile(older / "manifest.json", step / "manifest.json")
    return {"manifest.json"}


def shard_of_an_older_step(step: Path, chance: random.Random) -> set[str]:
    target = _any_shard(step, chance)
    older = _shards(chance.choice(_other_steps(step)))
    shutil.copyfile(chance.choice(older), target)
    return {target.name}


def shard_of_another_fence(step: Path, chance: random.Random) -> set[str]:
    """The same rank's shard of the same step, as a round wrote it that has been fenced since."""
    target = _any_shard(step, chance)
    fenced = chance.choice(sorted(set(step.glob("*.bin")) - set(_shards(step))))
    shutil.copyfile(fenced, target)
    return {target.name}


def index_of_another_shard(step: Path, chance: random.Random) -> set[str]:
    """One shard's data under another's index and footer."""
    one, other = chance.sample(_shards(step), 2)
    one.write_bytes(one.read_bytes()[:8192] + other.read_bytes()[8192:])
    return {one.name}


ALL: tuple[Damage, ...] = (
    flip_a_bit,
    flip_bits_of_the_manifest,
    change_a_digit_of_the_manifest,
    truncate,
    empty,
    extend,
    remove,
    zero_a_block,
    swap_blocks,
    swap_shards,
    stale_manifest,
    shard_of_an_older_step,
    shard_of_another_fence,
    index_of_another_shard,
)


def _shards(step: Path) -> list[Path]:
    """The committed ones: those of the newest fence."""
    newest = max(path.name[:14] for path in step.glob("shard-*.bin"))
    return sorted(step.glob(f"{newest}-*.bin"))


def _any_shard(step: Path, chance: random.Random) -> Path:
    return chance.choice(_shards(step))


def _any_file(step: Path, chance: random.Random) -> Path:
    return chance.choice([*_shards(step), step / "manifest.json"])


def _other_steps(step: Path) -> list[Path]:
    return sorted(path for path in step.parent.glob("step-*") if path != step)
