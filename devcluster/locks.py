"""Locks between processes: files that are locked as long as they are open, so that no crash can leave one behind."""

import contextlib
import fcntl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO


def acquire(path: Path, seconds: float = 0.3) -> IO[str] | None:
    """The locked file, to be closed by the caller, or None if someone else holds it all that time.

    The short wait is for those who only look whether it is held.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("w")
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                file.close()
                return None
            time.sleep(0.02)
        else:
            return file


def is_held(path: Path) -> bool:
    """Whether some living process holds the lock."""
    file = acquire(path, seconds=0)
    if file is not None:
        file.close()
    return file is None


@contextlib.contextmanager
def waiting(path: Path, say: Callable[[str], None], what: str) -> Iterator[None]:
    """Hold the lock, however long it takes to get it; `what` others do meanwhile is said once."""
    file = acquire(path)
    if file is None:
        say(f"another process is {what}; waiting for it")
        file = path.open("w")
        fcntl.flock(file, fcntl.LOCK_EX)
    with file:
        yield
