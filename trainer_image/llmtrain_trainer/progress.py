"""What a worker tells its agent, and rank 0 the reader of its log.

Reports are datagrams on a unix socket: fire and forget. An agent that is slow, restarting or absent costs training
nothing; a lost report is replaced by the next one, and for the last one there is time.
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import os
import socket
import threading
from typing import Any, Final

from llmtrain_operator.contract import codec, names, wire
from llmtrain_trainer.spending import Spending

LAST_WORD: Final = 1.0
"""Seconds that a worker which ends waits for an agent that is slow to hear it."""


class StepTimes:
    """Counts steps by their durations, for `wire.Durations`."""

    def __init__(self) -> None:
        self._counts = [0] * (len(wire.STEP_BOUNDS) + 1)
        self._seconds = 0.0

    def with_one(self, seconds: float) -> wire.Durations:
        """After one more step."""
        self._counts[bisect.bisect_left(wire.STEP_BOUNDS, seconds)] += 1
        self._seconds += seconds
        return wire.Durations(tuple(self._counts), round(self._seconds, 6))


class Reporter:
    """Keeps this worker's `wire.Progress` and sends it on every change. Any thread may tell one, but for a phase.

    `spending`: where this worker's time goes, which is told with the phase, at each step too.
    """

    def __init__(self, rank: int, max_steps: int) -> None:
        self.spending = Spending()
        self.progress = wire.Progress(
            rank=rank, round=int(os.environ.get(names.ENV_ROUND, "0")), phase="loading", max_steps=max_steps
        )
        self._path = os.environ.get(names.ENV_PROGRESS_SOCKET)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._lock = threading.Lock()
        self._steps = StepTimes()
        self.update()

    def update(self, **changes: Any) -> None:
        """Change the named fields of the progress and send all of it."""
        if "phase" in changes:
            changes["spent"] = self.spending.read()
        with self._lock:
            if (took := changes.get("step_seconds")) is not None:
                changes["durations"] = self._steps.with_one(took)
            self.progress = dataclasses.replace(self.progress, **changes)
            self._send()

    def close(self) -> None:
        """Send the progress once more, before the worker ends: no other report would replace this one."""
        with self._lock:
            self._socket.settimeout(LAST_WORD)
            self._send()

    def _send(self) -> None:
        if self._path:
            with contextlib.suppress(OSError):
                self._socket.sendto(codec.encode(self.progress).encode(), self._path)


def step_line(progress: wire.Progress) -> str:
    """`step 20/200 loss 3.2101 lr 3.0e-04 12,345 tok/s`."""
    return (
        f"step {progress.step}/{progress.max_steps} loss {progress.loss:.4f} lr {progress.learning_rate:.1e} "
        f"{progress.tokens_per_second:,.0f} tok/s"
    )


def is_worth_a_line(step: int, max_steps: int) -> bool:
    """About twenty lines for a short run, one in a hundred steps for a long one; first and last always."""
    return step in (1, max_steps) or step % min(100, max(1, max_steps // 20)) == 0
