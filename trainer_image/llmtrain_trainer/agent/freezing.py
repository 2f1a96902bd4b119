"""Workers that somebody has stopped: alive, holding their connections, and never to take another step.

No error tells of a SIGSTOP: the others wait in their collectives for as long as these may take. The kernel knows at
once. A debugger's stop is another state, and does not count.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

LIMIT: Final = 0.7
"""Seconds that a worker may be stopped: someone who only looks lets it go on sooner."""
TRACED: Final = "t"
_STOPPED: Final = "T"


class Freezes:
    """Since when each worker is stopped, as far as it was looked at."""

    def __init__(self) -> None:
        self._since: dict[int, float] = {}

    def look(self, workers: Mapping[int, int], now: float) -> tuple[int, float] | None:
        """The local rank of a worker that has been stopped for too long, and for how many seconds, if there is one.
        `workers`: process ids by local rank; `now` in seconds."""
        stopped = {rank: pid for rank, pid in workers.items() if state(pid) == _STOPPED}
        self._since = {pid: self._since.get(pid, now) for pid in stopped.values()}
        lasting = ((rank, now - self._since[pid]) for rank, pid in stopped.items())
        return next(((rank, seconds) for rank, seconds in lasting if seconds >= LIMIT), None)


def state(pid: int) -> str:
    """The kernel's letter for what a process does, "" if there is none."""
    fields = stat(Path(f"/proc/{pid}"))
    return fields[0] if fields else ""


def stat(process: Path) -> list[str]:
    """What the kernel says of a process or thread, from its state on (field 3 of proc(5)); nothing if it is gone."""
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
