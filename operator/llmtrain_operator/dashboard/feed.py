"""Looks at the jobs for as long as somebody reads, and shows what it saw on the board.

It asks anew each time, as `llmtrain status --watch` does, so that nothing has to be taken up again after the API server
was away: what it cannot see, and what to do about that, stands on the board beside what it saw last. A look that takes
long makes the next one wait in proportion, so that a large cluster is not asked more than it bears.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Final

from llmtrain_operator.cli.access import INTERVAL, explain
from llmtrain_operator.cli.source import JobSource
from llmtrain_operator.dashboard.board import Board
from llmtrain_operator.dashboard.look import Look, Problem
from llmtrain_operator.dashboard.model import JobPage, JobRow, key_of, page, point, row
from llmtrain_operator.dashboard.series import Point, extended
from llmtrain_operator.ports import Conflict, Rejected, Unavailable

MOST_JOBS: Final = 1000
"""Rows of the list; of more jobs than that only the newest are shown."""
_MOST_CURVES: Final = 32
_REST: Final = 4.0
"""Rest after a look, in times of what it took."""


class Feed:
    """Everything in `namespace` of `source`, in all namespaces if it is empty."""

    def __init__(self, source: JobSource, namespace: str) -> None:
        self._source, self._namespace = source, namespace
        self._loop, self._awaited = asyncio.get_running_loop(), asyncio.Event()
        self._curves: OrderedDict[str, tuple[Point, ...]] = OrderedDict()
        self._last = Look()
        self.board = Board(lambda: self._loop.call_soon_threadsafe(self._awaited.set))

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await self._awaited.wait()
            self._awaited.clear()
            while (wanted := self.board.wanted) is not None:
                begun = time.monotonic()
                self._last = await self._look(wanted)
                self.board.show(self._last)
                await self._pause(max(INTERVAL, _REST * (time.monotonic() - begun)))

    async def _pause(self, seconds: float) -> None:
        """Rest, unless somebody comes who wants to see something at once."""
        try:
            async with asyncio.timeout(seconds):
                await self._awaited.wait()
        except TimeoutError:
            return
        self._awaited.clear()

    async def _look(self, wanted: frozenset[str]) -> Look:
        try:
            jobs = await self._source.jobs(self._namespace)
            newest = sorted(jobs, key=lambda job: str(job["metadata"]["creationTimestamp"]))[-MOST_JOBS:]
            known = {key_of(job): job for job in jobs}
            pages = {key: await self._page(known.get(key)) for key in wanted}
        except (Unavailable, Rejected, Conflict) as error:
            return Look(self._last.rows, self._last.total, self._last.pages, problem_of(error), self._last.complete)
        rows: dict[str, JobRow] = {key_of(job): row(job) for job in newest}
        return Look(rows, len(jobs), pages, None, complete=True)

    async def _page(self, job: Mapping[str, Any] | None) -> JobPage | None:
        if job is None:
            return None
        metadata = job["metadata"]
        pods = await self._source.pods(metadata["namespace"], metadata["name"])
        return page(job, pods, self._curve(str(metadata["uid"]), point(job)))

    def _curve(self, uid: str, now: Point | None) -> tuple[Point, ...]:
        """What was seen of a job so far, for the jobs whose pages were read last."""
        curve = self._curves.pop(uid, ())
        if now and (not curve or curve[-1] != now):
            curve = extended(curve, now)
        self._curves[uid] = curve
        while len(self._curves) > _MOST_CURVES:
            self._curves.popitem(last=False)
        return curve


def problem_of(error: Exception) -> Problem:
    """The error with its remedy, as a person should read it."""
    text = explain(error)
    if "does not know LLMTrainJob" in text:
        title = "No LLMTrainJobs in this cluster"
    elif "HTTP 403" in text:
        title = "No right to see this"
    elif isinstance(error, Unavailable):
        title = "No answer from the cluster"
    else:
        title = "The jobs cannot be read"
    return Problem(title=title, text=text)
