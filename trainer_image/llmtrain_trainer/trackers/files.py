"""How far a record has come: by curve, and in a run's own log files, for backends that are synced later."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from llmtrain_trainer.trackers.blocklog import BlockLog
from llmtrain_trainer.trackers.points import Point


class Curves:
    """The newest step of each curve, where the values of a step are written one by one."""

    def __init__(self, steps: Mapping[str, int]) -> None:
        self._steps = dict(steps)

    @property
    def whole(self) -> int:
        """The newest step of which no value can be missing: of the one after that some may be."""
        return max(0, max(self._steps.values(), default=0) - 1)

    def lacking(self, point: Point) -> dict[str, float]:
        """Those of its values that are not there."""
        return {name: value for name, value in point.values.items() if self._steps.get(name, 0) < point.step}


StepOf = Callable[[bytes], tuple[str, int]]
"""The curve and the step of a record; step 0: it is of none."""


class LogFile:
    """One file, read again and again while it grows."""

    def __init__(self, path: Path, step_of: StepOf) -> None:
        self._step_of = step_of
        self._log = BlockLog(path.open("rb"))
        self._steps: dict[str, int] = {}

    def steps(self) -> dict[str, int]:
        """The newest step in it of each curve."""
        for record in self._log.records():
            curve, step = self._step_of(record)
            if step:
                self._steps[curve] = max(step, self._steps.get(curve, 0))
        return self._steps


def newest_steps(paths: Iterable[Path], step_of: StepOf) -> dict[str, int]:
    """The newest step of each curve in the files of earlier rounds."""
    found: dict[str, int] = {}
    for path in paths:
        for curve, step in LogFile(path, step_of).steps().items():
            found[curve] = max(step, found.get(curve, 0))
    return found
