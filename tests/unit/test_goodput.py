"""The ledger's arithmetic, a round's account, the timeline and the history."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtrain_operator import goodput
from llmtrain_operator.api import HistoryStatus, ProgressStatus
from llmtrain_operator.contract.wire import Progress, Spent
from llmtrain_operator.goodput import history, timeline
from llmtrain_operator.goodput.rounds import Ground, account

GROUND = Ground("restart", 40, "durableWait")
THIRTY = Spent(steps=30, loading=2.0, restoring=1.0, stepping=30.0, data=3.0, snapshots=0.6, durable=0.4)


def test_goodput_is_the_productive_share_without_suspension() -> None:
    """And nothing before any time has passed; causes of another version count as lost."""
    assert goodput.goodput({}) is None
    assert goodput.goodput({"suspended": 50.0}) is None
    assert goodput.goodput({"productive": 30.0, "ofTomorrow": 10.0, "suspended": 100.0}) == 0.75


def test_what_a_fault_cost_is_what_its_causes_grew_by() -> None:
    """Training that went on meanwhile is no cost."""
    before = {"productive": 10.0, "detect": 1.0}
    after = {"productive": 90.0, "detect": 2.5, "restart": 1.0, "recompute": 0.25, "resize": 5.0}
    assert goodput.cost(after, before) == {"detect": 1.5, "restart": 1.0, "recompute": 0.25}


# --- a round's account ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "spent", "wall", "lost", "expected"),
    [
        pytest.param(
            Progress(0, 1, step=60),
            THIRTY,
            38.0,
            False,
            {
                "restart": 2.5, "restore": 1.0, "recompute": 10.0, "productive": 20.5, "dataWait": 3.0,
                "snapshot": 0.6, "durableWait": 0.4,
            },
            id="steps-31-to-40-again",
        ),
        pytest.param(
            Progress(0, 1, step=60),
            THIRTY,
            38.0,
            True,
            {
                "restart": 2.5, "restore": 1.0, "recompute": 10.0, "productive": 20.0, "detect": 0.5, "dataWait": 3.0,
                "snapshot": 0.6, "durableWait": 0.4,
            },
            id="lost-with-the-step-in-progress",
        ),
        pytest.param(
            Progress(0, 1, phase="restoring"),
            Spent(loading=2.0, restoring=0.25),
            4.0,
            True,
            {"restart": 2.5, "restore": 1.5},
            id="lost-before-it-trained",
        ),
        pytest.param(
            Progress(0, 1, step=38),
            Spent(steps=3, loading=1.0, stepping=3.0),
            6.0,
            False,
            {"restart": 1.5, "recompute": 4.5},
            id="still-doing-again",
        ),
        pytest.param(
            Progress(0, 1, step=100, phase="saving"),
            Spent(steps=10, loading=1.0, stepping=10.0, evaluating=2.0, saving=1.0),
            16.0,
            False,
            {"restart": 1.5, "productive": 12.0, "durableWait": 2.5},
            id="evaluated-and-saving",
        ),
        pytest.param(
            Progress(0, 1, step=100, phase="done"),
            Spent(steps=10, loading=1.0, stepping=10.0, saving=1.0, exporting=2.0),
            16.0,
            False,
            {"restart": 1.5, "productive": 10.0, "durableWait": 1.0, "export": 3.5},
            id="done",
        ),
        pytest.param(
            Progress(0, 1, step=50),
            Spent(steps=5, loading=6.0, stepping=6.0),
            4.0,
            False,
            {"restart": 2.0, "productive": 2.0},
            id="a-clock-that-runs-otherwise",
        ),
    ],
)  # fmt: skip
def test_a_rounds_time_by_cause(told, spent, wall, lost, expected) -> None:
    """The lead goes to what the round was formed for, the tail to what the worker is at, or to detection."""
    found = account(told, spent, GROUND, wall, 0.5, lost=lost)
    assert {cause: seconds for cause, seconds in found.seconds.items() if seconds} == pytest.approx(expected)


def test_the_lead_is_the_shortest_that_fits() -> None:
    """A report that comes late looks like a late start, until one comes in time."""
    late = account(Progress(0, 1, step=1), Spent(1, loading=1.0, stepping=1.0), GROUND, 4.0, None, lost=False)
    assert (late.lead, late.tail) == (2.0, 0.0)
    better = account(Progress(0, 1, step=4), Spent(4, loading=1.0, stepping=4.0), GROUND, 5.5, late.lead, lost=False)
    assert (better.lead, better.tail) == (0.5, 0.0)
    after = account(Progress(0, 1, step=4), Spent(4, loading=1.0, stepping=4.0), GROUND, 7.0, better.lead, lost=False)
    assert (after.lead, after.tail) == (0.5, 1.5)


@given(
    st.lists(st.floats(0, 1e5), min_size=9, max_size=9),
    st.integers(0, 1000),
    st.integers(0, 1000),
    st.floats(0, 1e6).map(lambda wall: round(wall, 3)),
    st.none() | st.floats(0, 100),
    st.booleans(),
)
def test_an_account_has_every_millisecond_once(times, steps, more, wall, lead, lost) -> None:
    """Whatever the worker says, and however wrong its clock is."""
    found = account(Progress(0, 1, step=steps + more), Spent(steps, *times), GROUND, wall, lead, lost=lost)
    assert sum(found.seconds.values()) == pytest.approx(wall, abs=1e-6)
    assert min(found.seconds.values(), default=0.0) >= 0


# --- the timeline ---------------------------------------------------------------------------------------------------


def _told(segments) -> list[tuple[str, float]]:
    return [(each.cause, each.seconds) for each in segments]


def test_time_is_drawn_where_it_was_spent() -> None:
    """New time comes at the end; what turns out to be otherwise is taken from there."""
    first = timeline.grown((), {}, {"starting": 2.0, "productive": 5.0})
    second = timeline.grown(first, {"starting": 2.0, "productive": 5.0}, {"starting": 2.0, "productive": 9.0})
    assert _told(second) == [("starting", 2.0), ("productive", 9.0)]
    third = timeline.grown(
        second, {"starting": 2.0, "productive": 9.0}, {"starting": 2.0, "productive": 8.0, "detect": 1.5}
    )
    assert _told(third) == [("starting", 2.0), ("productive", 8.0), ("detect", 1.5)]
    assert [each.start for each in third] == [0.0, 2.0, 10.0]


def test_what_is_short_gives_way_when_there_is_too_much() -> None:
    """Moments of waiting are put together; the fault stays where it was."""
    ledger: dict[str, float] = {}
    segments: tuple = ()
    for turn in range(60):
        cause, length = ("detect", 3.0) if turn == 20 else ("dataWait", 0.01) if turn % 2 else ("productive", 1.0)
        after = goodput.book(ledger, cause, length)
        segments, ledger = timeline.grown(segments, ledger, after, most=8), after
    assert len(segments) <= 8
    [fault] = [each for each in segments if each.cause == "detect"]
    assert fault.start == pytest.approx(10.1, abs=0.5)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([*goodput.CAUSES, "ofTomorrow"]), st.sampled_from(goodput.CAUSES), st.integers(0, 5000)
        ),
        max_size=150,
    )
)
def test_a_timelines_sums_are_the_ledgers(changes) -> None:
    """Also where time is booked anew, and segments are put together."""
    ledger: dict[str, float] = {}
    segments: tuple = ()
    for cause, other, milliseconds in changes:
        after = goodput.book(goodput.moved(ledger, other, "detect", milliseconds / 2e3), cause, milliseconds / 1e3)
        after = {name: round(value, 3) for name, value in after.items()}
        segments, ledger = timeline.grown(segments, ledger, after, most=20), after
        sums: dict[str, float] = {}
        for name, seconds in _told(segments):
            sums = goodput.book(sums, name, seconds)
        assert sums == pytest.approx({name: value for name, value in ledger.items() if value}, abs=0.002 * len(changes))
        assert len(segments) <= 20
        ends = [each.start + each.seconds for each in segments]
        assert [each.start for each in segments[1:]] == pytest.approx(ends[:-1], abs=0.002)


# --- the history ----------------------------------------------------------------------------------------------------


def test_a_history_stays_even() -> None:
    """From the first moment to the newest, in gaps that differ by no more than a factor of two or so."""
    known: HistoryStatus | None = None
    for step in range(1, 1001):
        told = ProgressStatus(step=step, loss=5.0 - step / 1000, step_seconds=0.5, phase="training")
        known = history.taken(known, told, step * 0.5, most=16)
    assert known is not None
    assert (len(known.times), known.steps[0], known.steps[-1]) == (16, 1, 1000)
    gaps = [later - earlier for earlier, later in zip(known.times, known.times[1:], strict=False)]
    assert max(gaps) <= 2.5 * sorted(gaps)[len(gaps) // 2]
    assert len(known.losses) == len(known.step_seconds) == 16


@pytest.mark.parametrize(
    "told",
    [
        pytest.param(ProgressStatus(step=5, phase="training", step_seconds=1.0), id="no-loss"),
        pytest.param(ProgressStatus(step=5, phase="saving", loss=1.0, step_seconds=1.0), id="not-a-step"),
        pytest.param(ProgressStatus(step=4, phase="training", loss=1.0, step_seconds=1.0), id="no-news"),
    ],
)
def test_only_a_step_is_history(told) -> None:
    """The same object means that there is nothing to write."""
    known = HistoryStatus(times=(1.0,), steps=(4,), losses=(2.0,), step_seconds=(1.0,))
    assert history.taken(known, told, 9.0) is known
