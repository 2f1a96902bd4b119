"""What agents' silence means: measured only while someone is there to hear."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmtrain_operator.agents import ARRIVAL_GRACE, LOOK, STANDSTILL, AgentBook
from llmtrain_operator.contract.wire import AgentUpdate, Pace, Preflight, Progress, Report
from llmtrain_operator.state import PodView


def pod(uid: str) -> PodView:
    return PodView(
        f"j-0-{uid}", "d", uid, "j", 0, 1, "Running", True, "n1", False, "10.0.0.1", "", "", None, "", True, ""
    )


def says(uid: str, *, connected: bool = True) -> AgentUpdate:
    return AgentUpdate("d", uid, connected, "", Report("d/j", f"j-0-{uid}", uid, 0, 1, "10.0.0.1", "running", 1))


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def book(clock) -> AgentBook:
    """One that has known the agents a and b over its first link."""
    book = AgentBook(clock)
    book.link_changed(True)
    book.update(says("a"))
    book.update(says("b"))
    return book


def silence(book: AgentBook, uid: str) -> float | None:
    view = book.views([pod(uid)]).get(uid)
    return view and view.silent_for


def test_a_missed_agent_is_excused_with_the_others(book, clock) -> None:
    """Nobody could prove who it is while the API server was away; training went on without the coordinator."""
    book.update(replace(says("a", connected=False), missed=True, quiet=1.3))
    view = book.views([pod("a")])["a"]
    assert (view.missed, view.quiet) == (True, 1.3)
    book.excuse(["a"])
    assert not book.views([pod("a")])["a"].missed


def test_that_an_agent_was_told_to_end_is_news(book, clock) -> None:
    """It does not wait until figures are due again."""
    update = says("a")
    assert book.update(update)
    assert not book.update(replace(update, report=replace(update.report, leaving="SIGTERM")))


def test_that_a_round_stands_still_is_news(book, clock) -> None:
    """Of an agent whose absence is known already."""
    away = says("a", connected=False)
    book.update(away)
    assert book.update(away) is True
    assert book.update(replace(away, missed=True)) is False


def test_an_agent_that_ended_while_the_coordinator_was_away_counts_as_silent(book, clock) -> None:
    """The next coordinator knows nothing of it and will never speak of it."""
    book.link_changed(False)
    clock.now += 60
    assert (silence(book, "a"), silence(book, "b")) == (0, 0), "nobody was there to hear"
    book.link_changed(True)
    book.update(says("a"))
    clock.now += ARRIVAL_GRACE
    assert (silence(book, "a"), silence(book, "b")) == (0, None), "it may still find its way"
    clock.now += 11
    assert (silence(book, "a"), silence(book, "b")) == (0, 11)
    assert not book.views([pod("b")])["b"].connected


def test_silence_begins_when_the_first_agent_could_reach_the_coordinator(clock) -> None:
    """With no API server no token can be reviewed: a coordinator that no agent has reached yet says nothing."""
    book = AgentBook(clock)
    book.link_changed(True)
    clock.now += 3600
    assert silence(book, "a") is None
    book.update(says("b"))
    assert silence(book, "a") is None
    clock.now += ARRIVAL_GRACE + 5
    assert silence(book, "a") == 5


def trains(uid: str, step: int, *, phase: str = "training", seconds: float = 0.1) -> AgentUpdate:
    told = Progress(0, 1, phase, step, step_seconds=seconds)
    said = says(uid)
    return replace(said, report=replace(said.report, progress=told))


def test_an_absent_agent_whose_round_stands_still_is_missed(clock) -> None:
    """It went with the coordinator before this one, on the same node say: nobody has to wait for it to find its way."""
    book, pods = AgentBook(clock), [pod("a"), pod("b")]
    book.link_changed(True)
    assert book.look_again(pods) is None
    book.update(trains("a", 7))
    clock.now += 2
    book.update(trains("a", 8))
    assert book.look_again(pods) == LOOK
    clock.now += STANDSTILL - 0.1
    assert silence(book, "b") is None, "its others went on until a moment ago"
    clock.now += 0.2
    view = book.views(pods)["b"]
    assert (view.missed, view.connected) == (True, False)
    book.update(trains("a", 9))
    assert silence(book, "b") is None, "they go on: it will find its way"
    book.update(says("b"))
    assert book.look_again(pods) is None


@pytest.mark.parametrize(
    "told",
    [trains("a", 7, phase="evaluating"), trains("a", 7, seconds=4.0), says("a"), trains("a", 7, phase="loading")],
    ids=["evaluating", "long steps", "tells nothing", "loading"],
)
def test_a_standstill_that_is_none(told, clock) -> None:
    """What takes its time says nothing about who is absent."""
    book = AgentBook(clock)
    book.link_changed(True)
    book.update(told)
    clock.now += 11
    assert "b" not in book.views([pod("a"), pod("b")])


def test_an_agent_that_never_came_is_silent_since_its_pod_runs(book, clock) -> None:
    """However long others have been there; and it is forgotten with its pod."""
    clock.now += 3600
    assert silence(book, "new") is None
    clock.now += 100
    assert silence(book, "new") == 100
    book.forget_all_but(("a", "b"), "d", "d/j")
    assert silence(book, "new") is None


def test_what_is_only_progress_is_told_apart(book) -> None:
    """Figures of a round that goes on; everything else may change what is to be done."""
    assert book.update(says("a"))
    quick = says("a")
    assert book.update(replace(quick, report=replace(quick.report, paces=(Pace(0, 0.5, 1.0),))))
    assert not book.update(says("a", connected=False))
    assert not book.update(says("a"))
    measured = says("a")
    measured = replace(measured, report=replace(measured.report, preflight=Preflight(1, matmul=1.0)))
    assert not book.update(measured)
    assert book.update(measured)
    book.link_changed(False)
    book.link_changed(True)
    assert not book.update(measured), "the first word over a new link"


def test_how_long_an_agent_has_been_there(book, clock) -> None:
    """Since it came, or came back, or this side could see it again."""
    clock.now += 60
    book.update(says("a"))
    assert book.views([pod("a")])["a"].connected_for == 60
    book.update(says("a", connected=False))
    book.update(says("a"))
    assert book.views([pod("a")])["a"].connected_for == 0


def test_silence_during_which_nothing_could_be_done_is_excused(book, clock) -> None:
    """An agent that was refused while the API server was away gets its time to come back."""
    book.update(says("a", connected=False))
    clock.now += 60
    assert silence(book, "a") == 60
    book.excuse(["a"])
    clock.now += 3
    assert silence(book, "a") == 3


def test_agents_of_deleted_jobs_are_forgotten(book) -> None:
    """Also those that the coordinator had no chance to see off."""
    book.update(says("a", connected=False))
    book.link_changed(False)
    book.link_changed(True)
    book.forget_all_but((), "d", "d/j")
    assert not book._known
