"""Dead grandchildren, which come to us when this process is PID 1 of its container.

Only those that are not our own workers are waited for: torch must get the exit status of its workers itself.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Final

INTERVAL: Final = 1.0
_next_look = 0.0


def reap_orphans(workers: AbstractSet[int]) -> None:
    """Wait for every zombie child outside `workers`, if this is PID 1; looks at most once a second."""
    global _next_look
    if os.getpid() != 1 or time.monotonic() < _next_look:
        return
    _next_look = time.monotonic() + INTERVAL
    for child in _zombies(os.getpid()) - workers:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(child, os.WNOHANG)


def _zombies(parent: int) -> set[int]:
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            state, ppid = stat.read_text().rpartition(")")[2].split()[:2]
            if state == "Z" and int(ppid) == parent:
                found.add(int(stat.parent.name))
    return found
