"""SwanLab: one run for the job, by its UID. Offline each round has a folder of its own, for `swanlab sync`.

As with Weights & Biases the record is offline the run's log file, which is read back. Online it is the server: the
library itself asks it for what it has of each curve, and drops what is not newer.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmtrain_trainer.trackers.backend import Fence, Run
from llmtrain_trainer.trackers.files import Curves, LogFile, newest_steps
from llmtrain_trainer.trackers.points import Point
from llmtrain_trainer.trackers.wandb import Delayed


class SwanLab:
    """An experiment of `project`; its files are in `folder`."""

    def __init__(self, project: str, workspace: str | None, host: str | None, folder: Path, *, online: bool) -> None:
        self._project, self._workspace, self._host = project, workspace, host
        self._folder, self._online = folder, online

    def begin(self, run: Run) -> int:
        """See `Backend.begin`."""
        if self._host:
            os.environ |= {"SWANLAB_API_HOST": self._host, "SWANLAB_WEB_HOST": self._host}
        import swanlab

        self._folder.mkdir(parents=True, exist_ok=True)
        self._fence = Fence(self._folder, run)
        self._fence.raise_to_this_round()
        pattern = f"run-*-{run.id}/run-{run.id}.swanlab"
        self._curves = Curves({} if self._online else newest_steps(self._folder.glob(pattern), _step))
        probe = swanlab.Settings.Probe(
            hardware=False, runtime=False, requirements=False, git=False, swanlab=False, monitor=False
        )
        terminal = swanlab.Settings.Terminal(proxy_type="none")
        self._run: Any = swanlab.init(
            project=self._project,
            workspace=self._workspace,
            id=run.id,
            name=run.name,
            log_dir=str(self._folder),
            mode="online" if self._online else "offline",
            resume="allow" if self._online else "never",
            config=run.config,
            settings=swanlab.Settings(interactive=False, probe=probe, terminal=terminal),
        )
        self._delayed = Delayed(self._curves.whole)
        if not self._online:
            self._file = LogFile(Path(self._run.dir) / f"run-{run.id}.swanlab", _step)
        return self._curves.whole

    def log(self, points: Sequence[Point]) -> None:
        """See `Backend.log`."""
        self._fence.check()
        for each in points:
            self._run.log(self._curves.lacking(each), step=each.step)
        self._delayed.logged(points[-1].step, time.monotonic())

    def kept(self) -> int:
        """See `Backend.kept`."""
        if self._online:
            return self._delayed.kept(time.monotonic())
        return max(self._curves.whole, Curves(self._file.steps()).whole)

    def finish(self) -> None:
        """See `Backend.finish`."""
        self._run.finish()


def _step(record: bytes) -> tuple[str, int]:
    """Of a scalar record."""
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record

    parsed = Record.FromString(record)
    return parsed.scalar.key, int(parsed.scalar.step) if parsed.HasField("scalar") else 0
