"""A queue of keys that want a pass: each at most once in line, at most one pass per key at a time.

A key added several times within the window gets one pass. A key added during its own pass gets another one after it,
so no change is ever missed. A pass that raises is repeated with growing pauses; other keys do not notice.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final

from llmtrain_operator.ports import Conflict, Rejected, Unavailable

log = logging.getLogger(__name__)

WINDOW: Final = 0.02
"""Seconds that a key waits for more changes to join it."""
_BACKOFF_FIRST: Final = 0.1
_BACKOFF_LIMIT: Final = 30.0
# A change may cure a failing key, so it does not wait the back-off out; but a stream of changes must not defeat it.
_EAGERNESS: Final = 1.0

Process = Callable[[str], Awaitable[float | None]]
"""One pass over a key. Returns the seconds until it wants another, None if it does not."""
PassObserver = Callable[[str, float, float, bool], None]
"""Told of each pass: key, seconds between being due and starting, seconds of the pass, whether it succeeded."""


class Schedule:
    """Keys by the time at which they are due, each once, at the earliest time that was asked for. Knows no clock."""

    def __init__(self) -> None:
        self._due: dict[str, float] = {}
        self._heap: list[tuple[float, int, str]] = []
        self._count = itertools.count()  # keys of the same time leave in the order in which they came

    def __len__(self) -> int:
        return len(self._due)

    def add(self, key: str, at: float) -> None:
        """Make `key` due at `at`, unless it already is earlier."""
        if at < self._due.get(key, float("inf")):
            self._due[key] = at
            heapq.heappush(self._heap, (at, next(self._count), key))

    def next_at(self) -> float | None:
        """When the first key is due, None if there is none."""
        while self._heap and self._due.get(self._heap[0][2]) != self._heap[0][0]:
            heapq.heappop(self._heap)  # moved to an earlier time since
        return self._heap[0][0] if self._heap else None

    def pop(self, now: float) -> tuple[str, float] | None:
        """Take out the key that has been due the longest, with the time since when. None if none is due."""
        first = self.next_at()
        if first is None or first > now:
            return None
        at, _, key = heapq.heappop(self._heap)
        del self._due[key]
        return key, at

    def overdue(self, now: float) -> int:
        """How many keys are due."""
        return sum(at <= now for at in self._due.values())


class WorkQueue:
    """Runs `process` for every added key, up to `workers` at once. Belongs to one event loop."""

    def __init__(
        self,
        process: Process,
        *,
        workers: int = 32,
        window: float = WINDOW,
        clock: Callable[[], float] = time.monotonic,
        on_pass: PassObserver | None = None,
    ) -> None:
        self._process, self._workers, self._window, self._clock = process, workers, window, clock
        self._on_pass = on_pass or _unobserved
        self._schedule = Schedule()
        self._running: set[str] = set()
        self._again: dict[str, float] = {}  # asked for during the key's own pass
        self._failures: dict[str, int] = {}
        self._not_before: dict[str, float] = {}
        self._news = asyncio.Event()
        self._stopping = False

    def add(self, key: str, delay: float = 0.0) -> None:
        """Have a pass over `key` in `delay` seconds, or sooner if that was asked for already."""
        at = max(self._clock() + max(delay, self._window), self._not_before.get(key, 0.0))
        if key in self._running:
            self._again[key] = min(at, self._again.get(key, at))
            return
        self._schedule.add(key, at)
        self._news.set()

    def depth(self) -> int:
        """How many keys are waiting although they are due, plus those in work."""
        return self._schedule.overdue(self._clock()) + len(self._running)

    def stop(self) -> None:
        """Begin no more passes; `run` returns when those in work are done."""
        self._stopping = True
        self._news.set()

    async def run(self) -> None:
        """Work until `stop`. Cancelling it cancels the passes in work too."""
        async with asyncio.TaskGroup() as passes:
            while not self._stopping:
                self._news.clear()
                while len(self._running) < self._workers and (due := self._schedule.pop(self._clock())):
                    key, since = due
                    self._running.add(key)
                    passes.create_task(self._work(key, since))
                await self._wait()

    async def _wait(self) -> None:
        """Until there may be something to begin: a new key, a worker that became free, or the next due time."""
        following = self._schedule.next_at() if len(self._running) < self._workers else None
        timeout = None if following is None else max(0.0, following - self._clock())
        try:
            async with asyncio.timeout(timeout):
                await self._news.wait()
        except TimeoutError:
            pass

    async def _work(self, key: str, since: float) -> None:
        started = self._clock()
        delay, succeeded = await self._attempt(key)
        now = self._clock()
        self._running.discard(key)
        self._on_pass(key, started - since, now - started, succeeded)
        if delay is not None:
            self._schedule.add(key, now + delay)
        if key in self._again:
            self._schedule.add(key, max(self._again.pop(key), self._not_before.get(key, 0.0)))
        self._news.set()

    async def _attempt(self, key: str) -> tuple[float | None, bool]:
        try:
            delay = await self._process(key)
        except (Conflict, Rejected, Unavailable) as error:
            pause = self._failed(key)
            log.warning("%s: %s; again in %.1f s", key, error, pause)
            return pause, False
        except Exception:  # the outermost edge of a pass: one job's bug must not stop the others
            pause = self._failed(key)
            log.exception("%s: the pass failed; again in %.1f s", key, pause)
            return pause, False
        self._failures.pop(key, None)
        self._not_before.pop(key, None)
        return delay, True

    def _failed(self, key: str) -> float:
        count = self._failures[key] = self._failures.get(key, 0) + 1
        pause = min(_BACKOFF_LIMIT, _BACKOFF_FIRST * (1 << min(count - 1, 16)))
        self._not_before[key] = self._clock() + min(pause, _EAGERNESS)
        return pause


def _unobserved(key: str, waited: float, seconds: float, succeeded: bool) -> None:
    del key, waited, seconds, succeeded
