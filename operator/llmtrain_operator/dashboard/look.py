"""A look at the jobs at one moment, and what a reader must be told who knows an earlier one. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from llmtrain_operator.dashboard.model import JobPage, JobRow
from llmtrain_operator.dashboard.series import Shape


class Problem(Shape):
    """Why what is shown may be old, and what to do about it."""

    title: str
    text: str


class News(Shape):
    """What a reader is told. `whole`: this is all there is, and not only what has changed. `total` counts the jobs, of
    which only the newest are shown. `page_of` is the job that `page` is about, empty if that has not changed; a page
    that is None is of a job that does not exist."""

    whole: bool
    problem: Problem | None
    total: int
    jobs: Mapping[str, JobRow]
    gone: tuple[str, ...]
    page_of: str = ""
    page: JobPage | None = None


@dataclass(frozen=True, slots=True)
class Look:
    """`rows` by the jobs' keys; `pages` of those that somebody reads, None for a job that does not exist. `complete`:
    the jobs have been seen, perhaps some time before the problem."""

    rows: Mapping[str, JobRow] = field(default_factory=dict)
    total: int = 0
    pages: Mapping[str, JobPage | None] = field(default_factory=dict)
    problem: Problem | None = None
    complete: bool = False

    def serves(self, job: str) -> bool:
        """Whether it has something for a reader of this job's page (empty: of the list alone)."""
        return self.problem is not None or (self.complete and (not job or job in self.pages))


def news(told: Look, look: Look, job: str) -> News:
    """What a reader who knows `told` must hear to know `look`, the page of `job` included."""
    changed = {key: row for key, row in look.rows.items() if told.rows.get(key) != row}
    page = look.pages.get(job)
    turned = job in look.pages and (job not in told.pages or told.pages[job] != page)
    return News(
        whole=not told.complete and look.complete,
        problem=look.problem,
        total=look.total,
        jobs=changed,
        gone=tuple(sorted(told.rows.keys() - look.rows.keys())),
        page_of=job if turned else "",
        page=page if turned else None,
    )
