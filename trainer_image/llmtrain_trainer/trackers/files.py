"""A run's own log files as the record: which steps lie in them by now. For backends that are synced later."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from llmtrain_trainer.trackers.blocklog import BlockLog

StepOf = Callable[[bytes], int]
"""The step of a record, 0 if it has none."""
_START: Final = 0


class LogFile:
    """One file, read again and again while it grows."""

    def __init__(self, path: Path, step_of: StepOf) -> None:
        self._step_of = step_of
        self._log = BlockLog(path.open("rb"))
        self._newest = _START

    def newest(self) -> int:
        """The newest step in it."""
        for record in self._log.records():
            self._newest = max(self._newest, self._step_of(record))
        return self._newest


def newest_step(paths: Iterable[Path], step_of: StepOf) -> int:
    """The newest step in the files of earlier rounds, 0 if there is none."""
    return max((LogFile(path, step_of).newest() for path in paths), default=_START)
