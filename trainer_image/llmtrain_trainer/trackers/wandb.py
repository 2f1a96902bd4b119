"""Weights & Biases: one run for the job, by its UID. Offline each round has a folder of its own, for `wandb sync`.

Offline the record is the run's log file, which is read back: the library keeps the newest points in memory for up to
5 s, and they are gone if it is killed. Online it is the server, which says at the start of a round what it has; what
was sent counts as kept after `DELAY`, for there is nobody to ask in between.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from llmtrain_trainer.trackers.backend import Fence, Run
from llmtrain_trainer.trackers.files import LogFile, newest_steps
from llmtrain_trainer.trackers.points import Point

DELAY: Final = 60.0
"""Seconds after which what was given to the library counts as on the server."""


class Delayed:
    """The newest step that was logged some seconds ago."""

    def __init__(self, begun: int) -> None:
        self._logged: deque[tuple[float, int]] = deque()
        self._kept = begun

    def logged(self, step: int, now: float) -> None:
        """All up to that step was given to the library."""
        self._logged.append((now, step))

    def kept(self, now: float) -> int:
        """See `Backend.kept`."""
        while self._logged and self._logged[0][0] + DELAY <= now:
            self._kept = self._logged.popleft()[1]
        return self._kept


class WeightsAndBiases:
    """A run of `project`; its files are in `folder`."""

    def __init__(self, project: str, entity: str | None, base_url: str | None, folder: Path, *, online: bool) -> None:
        self._project, self._entity, self._base_url = project, entity, base_url
        self._folder, self._online = folder, online

    def begin(self, run: Run) -> int:
        """See `Backend.begin`."""
        os.environ |= {"WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}
        import wandb

        self._folder.mkdir(parents=True, exist_ok=True)
        self._fence = Fence(self._folder, run)
        self._fence.raise_to_this_round()
        older = sorted((self._folder / "wandb").glob(f"offline-run-*-{run.id}/run-{run.id}.wandb"))
        begun = 0 if self._online else max(newest_steps(older, _step).values(), default=0)
        settings = wandb.Settings(
            base_url=self._base_url or wandb.Settings().base_url,
            console="off",
            disable_code=True,
            disable_git=True,
            x_disable_machine_info=True,
            x_disable_meta=True,
            x_disable_stats=True,
        )
        self._run: Any = wandb.init(
            project=self._project,
            entity=self._entity,
            id=run.id,
            name=run.name,
            dir=self._folder,
            mode="online" if self._online else "offline",
            resume="allow",
            config=run.config,
            settings=settings,
        )
        if self._online:
            begun = max(0, self._run.step - 1)
            self._delayed = Delayed(begun)
        else:
            self._file = LogFile(Path(self._run.dir).parent / f"run-{run.id}.wandb", _step)
        self._begun = begun
        return begun

    def log(self, points: Sequence[Point]) -> None:
        """See `Backend.log`."""
        self._fence.check()
        for each in points:
            self._run.log(each.values | {"_timestamp": each.time}, step=each.step, commit=True)
        if self._online:
            self._delayed.logged(points[-1].step, time.monotonic())

    def kept(self) -> int:
        """See `Backend.kept`."""
        if self._online:
            return self._delayed.kept(time.monotonic())
        return max([self._begun, *self._file.steps().values()])

    def finish(self) -> None:
        """See `Backend.finish`."""
        self._run.finish()


def _step(record: bytes) -> tuple[str, int]:
    """Of a history record, which has all values of a step."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]  # made when it is imported

    parsed = Record.FromString(record)
    return "", int(parsed.history.step.num) if parsed.HasField("history") else 0
