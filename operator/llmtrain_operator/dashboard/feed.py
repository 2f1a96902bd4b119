"""Looks at the jobs for as long as somebody reads, and shows what it saw on the board.

It asks anew each time, as `llmtrain status --watch` does, so that nothing has to be taken up again after the API server
was away: what it cannot see, and what to do about that, stands on the board beside what it saw last. A look that takes
long makes the next one wait in proportion, so that a large cluster is not asked more than it bears.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Final

from llmtrain_operator.cli.access import INTERVAL, explain
from llmtrain_operator.cli.source import JobSource
from llmtrain_operator.dashboard.board import Board
from llmtrain_operator.dashboard.look import Look, Problem
from llmtrain_operator.dashboard.model import JobPage, key_of, page, point, row
from llmtrain_operator.dashboard.series import Point, extended
from llmtrain_operator.ports import Conflict, Rejected, Unavailable
from llmtrain_operator.state import PodView

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
        self.board = Board(self._expect)

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

    def _expect(self) -> None:
        self._loop.call_soon_threadsafe(self._awaited.set)

    async def _pause(self, seconds: float) -> None:
        """Rest, unless somebody comes who wants to see something at once."""
        try:
            async with asyncio.timeout(seconds):
                await self._awaited.wait()
        except TimeoutError:
            return
        self._awaited.clear()

    async def _look(self, wanted: frozenset[str]) -> Look:
        last = self._last
        try:
            jobs = await self._source.jobs(self._namespace)
        except (Unavailable, Rejected, Conflict) as error:
            return Look(last.rows, last.total, last.pages, problem_of(error), last.complete)
        known = {key_of(job): job for job in jobs}
        newest = sorted(jobs, key=lambda job: str(job["metadata"]["creationTimestamp"]))[-MOST_JOBS:]
        pages: dict[str, JobPage | None] = {}
        problem = None
        for key in wanted:
            pods, trouble = await self._pods(known[key]) if key in known else ((), None)
            pages[key] = self._page(known[key], pods) if key in known else None
            problem = problem or trouble
        return Look({key_of(job): row(job) for job in newest}, len(jobs), pages, problem, complete=True)

    async def _pods(self, job: Mapping[str, Any]) -> tuple[Sequence[PodView], Problem | None]:
        """The job's pods, or why they cannot be seen: the rest of the page can."""
        try:
            return await self._source.pods(job["metadata"]["namespace"], job["metadata"]["name"]), None
        except (Unavailable, Rejected, Conflict) as error:
            return (), problem_of(error)

    def _page(self, job: Mapping[str, Any], pods: Sequence[PodView]) -> JobPage:
        return page(job, pods, self._curve(str(job["metadata"]["uid"]), point(job)))

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
