"""When each step was done, as JSON lines in a file: an account of the job's time that nobody else has a hand in.

Off unless `names.ENV_STEP_LOG` names the file. Rank 0 appends a line after each step, with one write, so that a worker
that is killed loses none. Times are seconds since 1970 by the machine's clock.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Self

from llmtrain_operator.contract import names, wire


class StepLog:
    """The log at `path`, which other rounds append to as well. None: there is none."""

    def __init__(self, path: Path | None) -> None:
        self._file = path.open("ab", buffering=0) if path else None
        self._spent = wire.Spent()

    @classmethod
    def open(cls, *, is_first: bool) -> Self:
        """The one that the environment names, on rank 0."""
        path = os.environ.get(names.ENV_STEP_LOG) if is_first else None
        return cls(Path(path) if path else None)

    def write(self, step: int, round_number: int, seconds: float, spent: wire.Spent) -> None:
        """The step has just been done, which took `seconds`. The line also says for how long, since the step before,
        training has waited for data and stood still for snapshots and checkpoints."""
        if self._file is None:
            return
        ended, before, self._spent = time.time(), self._spent, spent
        line = {
            "round": round_number,
            "step": step,
            "started": round(ended - seconds, 6),
            "ended": round(ended, 6),
            "data": round(spent.data - before.data, 6),
            "stalled": round(spent.snapshots + spent.durable - before.snapshots - before.durable, 6),
        }
        self._file.write(json.dumps(line).encode() + b"\n")
