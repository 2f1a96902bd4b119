"""Looking at jobs for those who read, and telling them what is new."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from llmtrain_operator.dashboard import feed as feed_module
from llmtrain_operator.dashboard.board import Board
from llmtrain_operator.dashboard.feed import MOST_JOBS, Feed
from llmtrain_operator.dashboard.look import Look, News, Problem, news
from llmtrain_operator.dashboard.model import JobPage, page, row
from llmtrain_operator.ports import Rejected, Unavailable
from tests.support.stage import Stage, feeding, job, pod

PROBLEM = Problem(title="t", text="x")


def look(*names: str, **more: Any) -> Look:
    """A look at these jobs."""
    rows = {f"ns/{name}": row(job(name)) for name in names}
    return Look(**{"rows": rows, "total": len(rows), "complete": True, **more})


def test_the_first_news_is_everything_and_the_next_only_what_changed() -> None:
    """Rows that are the same are not told again."""
    first, second = look("a", "b"), look("b", "c", problem=PROBLEM)
    assert (news(Look(), first, "").whole, set(news(Look(), first, "").jobs)) == (True, {"ns/a", "ns/b"})
    told = news(first, second, "")
    assert (told.whole, set(told.jobs), told.gone, told.problem) == (False, {"ns/c"}, ("ns/a",), PROBLEM)


def test_a_page_is_told_when_it_comes_when_it_changes_and_when_its_job_goes() -> None:
    """And to those who read it alone."""
    one, other = page(job()), page(job(restarts=1))
    steps: list[JobPage | None] = [one, one, other, None, None]
    told, heard = Look(), []
    for each in steps:
        now = look("gpt", pages={"ns/gpt": each})
        said = news(told, now, "ns/gpt")
        heard.append((said.page_of, said.page))
        assert news(told, now, "").page_of == ""
        told = now
    assert heard == [("ns/gpt", one), ("", None), ("ns/gpt", other), ("ns/gpt", None), ("", None)]


def test_a_reader_that_is_slow_hears_the_newest_and_nothing_queues_up() -> None:
    """Between two of its turns any number of looks may pass."""
    board = Board()
    board.show(look("a"))
    reader = board.read("", 5)
    assert set(heard(reader).jobs) == {"ns/a"}
    for number in range(100):
        board.show(look("a", f"b{number}"))
    told = heard(reader)
    assert (set(told.jobs), told.gone) == ({"ns/b99"}, ())
    board.close()
    assert list(reader) == []


def test_a_reader_is_told_that_nothing_has_changed() -> None:
    """So that it knows that somebody is there."""
    board = Board()
    board.show(look("a"))
    reader = board.read("", 0)
    assert [next(reader) is None for _ in range(3)] == [False, True, True]


def test_the_board_knows_who_reads_what() -> None:
    """Nobody: then nothing has to be looked at."""
    comers: list[None] = []
    board = Board(lambda: comers.append(None))
    assert board.wanted is None
    one, other = board.read("", 0), board.read("ns/a", 0)
    assert next(one) is None
    assert board.wanted == frozenset()
    assert next(other) is None
    assert (board.wanted, len(comers)) == ({"ns/a"}, 2)
    other.close()
    assert board.wanted == frozenset()
    one.close()
    assert board.wanted is None


def heard(reader: Iterator[News | None]) -> News:
    """The next news."""
    return next(said for said in reader if said)


@pytest.fixture(autouse=True)
def no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks follow each other quickly."""
    monkeypatch.setattr(feed_module, "INTERVAL", 0.01)


def test_a_feed_follows_jobs_and_the_page_that_is_read() -> None:
    """Curves grow while one looks."""
    stage = Stage()
    stage.put(job(progress={"step": 1, "loss": 4.0}), pod(0, "node-a"))
    with feeding(stage) as feed:
        reader = feed.board.read("ns/gpt", 5)
        said = heard(reader)
        assert said.page
        assert (set(said.jobs), said.page.members[0].node) == ({"ns/gpt"}, "node-a")
        stage.put(job(progress={"step": 2, "loss": 3.0}), pod(0, "node-a"))
        said = heard(reader)
        assert said.page
        assert [point.loss for point in said.page.history] == [4.0, 3.0]
        stage.remove("gpt")
        said = heard(reader)
        assert (said.page_of, said.page, said.gone) == ("ns/gpt", None, ("ns/gpt",))


@pytest.mark.parametrize(
    ("error", "title", "remedy"),
    [
        (Unavailable("list: refused"), "No answer from the cluster", "Is it up"),
        (Rejected("jobs is forbidden: no (HTTP 403)"), "No right to see this", "administrator grants it"),
        (
            Rejected("the server could not find the requested resource"),
            "No LLMTrainJobs",
            "install the operator's chart",
        ),
        (Rejected("odd"), "The jobs cannot be read", "odd"),
    ],
    ids=["away", "forbidden", "no CRD", "else"],
)
def test_what_cannot_be_seen_is_told_in_words(error: Exception, title: str, remedy: str) -> None:
    """At first sight too; and what was seen before stays."""
    stage = Stage()
    stage.error = error
    with feeding(stage) as feed:
        reader = feed.board.read("", 5)
        said = heard(reader)
        assert said.problem
        assert title in said.problem.title
        assert remedy in said.problem.text
        assert not said.whole
        stage.error = None
        stage.put(job())
        said = heard(reader)
        assert (said.whole, said.problem, set(said.jobs)) == (True, None, {"ns/gpt"})
        stage.error = error
        said = heard(reader)
        assert (said.jobs, said.gone, said.total, said.problem is not None) == ({}, (), 1, True)


def test_who_may_not_see_pods_sees_the_rest() -> None:
    """With a word about what is missing."""

    class Blind(Stage):
        async def pods(self, namespace: str, job: str) -> list[Any]:
            raise Rejected(f"pods of {namespace}/{job} is forbidden (HTTP 403)")

    stage = Blind()
    stage.put(job(restarts=3))
    with feeding(stage) as feed:
        said = heard(feed.board.read("ns/gpt", 5))
        assert said.page
        assert said.problem
        assert (said.page.row.restarts, said.problem.title) == (3, "No right to see this")


def test_nobody_looks_when_nobody_reads() -> None:
    """An open command with no page costs the API server nothing."""
    stage = Stage()
    with feeding(stage) as feed:
        assert stage.looks == 0
        reader = feed.board.read("", 5)
        heard(reader)
        reader.close()
        settled = threading.Event()
        feed._loop.call_soon_threadsafe(lambda: feed._loop.call_later(0.1, settled.set))
        settled.wait()
        known = stage.looks
        settled.clear()
        feed._loop.call_soon_threadsafe(lambda: feed._loop.call_later(0.1, settled.set))
        settled.wait()
        assert stage.looks == known


async def test_the_list_is_bounded_and_has_the_newest() -> None:
    """All are counted."""
    stage = Stage()
    for number in range(MOST_JOBS + 5):
        one = job(f"j{number}")
        one["metadata"]["creationTimestamp"] = (
            f"2026-01-01T{number // 3600:02}:{number // 60 % 60:02}:{number % 60:02}Z"
        )
        stage._jobs[f"j{number}"] = one
    seen = await Feed(stage, "ns")._look(frozenset())
    assert (seen.total, len(seen.rows), "ns/j4" in seen.rows, "ns/j5" in seen.rows) == (
        MOST_JOBS + 5,
        MOST_JOBS,
        False,
        True,
    )


async def test_curves_are_kept_of_the_last_jobs_that_were_read() -> None:
    """So that memory is bounded."""
    stage = Stage()
    feed = Feed(stage, "ns")
    for number in range(40):
        stage.put(job(f"j{number}", progress={"step": 1, "loss": 1.0}))
        await feed._look(frozenset({f"ns/j{number}"}))
    assert list(feed._curves) == [f"uid-j{number}" for number in range(8, 40)]
    await asyncio.sleep(0)
