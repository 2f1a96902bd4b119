"""Files written past the page cache, where the file system can.

A checkpoint's bytes are not read again soon. Through the cache each costs a copy, displaces the training data, and is
waited for at the end, when `fsync` finds all of them dirty; past it the disk takes them straight from the caller's
memory, one part after the other.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

ALIGNMENT: Final = 4096
"""Memory that begins at a multiple of this many bytes, and parts of such a length, can go past the cache."""


def write_synced(path: Path, parts: Iterable[memoryview]) -> None:
    """Make the file at `path`, which must not exist yet, of `parts`, every byte of it on the disk. Raises `OSError`.

    From the first part on that cannot go past the cache, the last at the latest, all go through it.
    """
    file = _create(path)
    try:
        for part in parts:
            _write(file, part)
        os.fsync(file)
    finally:
        os.close(file)


def _create(path: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        return os.open(path, flags | os.O_DIRECT, 0o666)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    path.unlink(missing_ok=True)  # the name may have been made before the refusal
    return os.open(path, flags, 0o666)


def _write(file: int, part: memoryview) -> None:
    left = part
    while left:
        try:
            left = left[os.write(file, left) :]
        except OSError as error:
            if error.errno != errno.EINVAL or not _go_through_the_cache(file):
                raise


def _go_through_the_cache(file: int) -> bool:
    """From now on; whether it was otherwise."""
    flags = fcntl.fcntl(file, fcntl.F_GETFL)
    fcntl.fcntl(file, fcntl.F_SETFL, flags & ~os.O_DIRECT)
    return bool(flags & os.O_DIRECT)
