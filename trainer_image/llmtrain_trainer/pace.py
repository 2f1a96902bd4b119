"""How long a worker takes for its own part of a step: what it computes, without waiting for others or for data.

In synchronous training the steps of all ranks take equally long, because the fast wait for the slow. What tells who is
slow is the time that each needs until it meets the others:

- On a CPU collectives are gloo's. Whoever asks for one, torch's functions or DeepSpeed at any ZeRO stage, in backward
  hooks too, hands it to a `ProcessGroup` and waits for it in `Work.wait`: the time in these is taken, at 8 us for both.
  All else between a step's first batch and its loss is the worker's own.
- On an accelerator collectives block its queue, not Python. Forward passes stand for the whole there, timed by events
  in the queue itself; up to ZeRO 2 there is no collective in them. ZeRO 3 gathers weights in each, so nothing is told.
  Not run on an accelerator.

Medians over the last `WINDOW` steps, so that neither first steps nor outliers count. Limits: what a collective costs is
nobody's own time, so a slow network is not seen here; torch's methods are replaced for the whole process.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch.distributed import ProcessGroup, Work

from llmtrain_operator.contract import wire

WINDOW: Final = 15
"""Steps that a pace is the median of."""
COLLECTIVES: Final = (
    "all_gather_single",
    "all_gather_single_coalesced",
    "all_to_all_single",
    "allgather",
    "allgather_coalesced",
    "allreduce",
    "allreduce_coalesced",
    "alltoall",
    "barrier",
    "broadcast",
    "gather",
    "gather_single",
    "recv",
    "recv_anysource",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_single",
    "reduce_scatter_single_coalesced",
    "scatter",
    "send",
)
"""The methods of a process group that torch begins one with."""


class Waits:
    """Seconds that this process has spent in collectives from now on."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._time(Work, "wait")
        for name in COLLECTIVES:
            if hasattr(ProcessGroup, name):  # an image of the user's may have an older torch
                self._time(ProcessGroup, name)

    def _time(self, kind: type, name: str) -> None:
        call = getattr(kind, name)

        @functools.wraps(call)
        def wait_for_others(*args: Any, **options: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*args, **options)
            finally:
                self.seconds += time.perf_counter() - began

        setattr(kind, name, wait_for_others)


class Pace:
    """Times the steps of worker `rank`, whose forward passes `gather` weights at ZeRO 3."""

    def __init__(self, rank: int, device: torch.device, *, gathers: bool) -> None:
        self._rank, self._device = rank, device
        self._waits = Waits() if device.type == "cpu" else None
        self._blind = self._waits is None and gathers
        self._forwards: list[tuple[torch.Event, torch.Event]] = []
        self._own: deque[float] = deque(maxlen=WINDOW)
        self._steps: deque[float] = deque(maxlen=WINDOW)

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around a step from its first batch to its loss: by then an accelerator has done all that it was given."""
        began = time.perf_counter()
        waited = self._waits.seconds if self._waits else 0.0
        yield
        if self._waits:
            self._own.append(time.perf_counter() - began - (self._waits.seconds - waited))
        elif not self._blind:
            self._own.append(sum(begin.elapsed_time(end) for begin, end in self._forwards) / 1000.0)
            self._forwards.clear()

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Around each forward pass of a step."""
        if self._waits or self._blind:
            yield
            return
        begin, end = (torch.Event(self._device, enable_timing=True) for _ in range(2))
        begin.record()
        yield
        end.record()
        self._forwards.append((begin, end))

    def told(self, seconds: float) -> wire.Pace | None:
        """After a step that took `seconds` with all waiting: how fast the last ones were, once there are enough."""
        self._steps.append(seconds)
        if len(self._own) < WINDOW:
            return None
        own, step = statistics.median(self._own), statistics.median(self._steps)
        return wire.Pace(self._rank, round(own, 6), round(step, 6))
