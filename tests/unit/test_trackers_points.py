"""Which steps have a point, what is in it, when it is handed on, and what a snapshot carries."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtrain_operator.contract.wire import Flash, Progress
from llmtrain_trainer.trackers import points
from llmtrain_trainer.trackers.points import CARRIED, FIELDS, Pending, Point

DONE = Progress(rank=0, round=3, step=20, loss=2.5, learning_rate=1e-3, validation_loss=2.25, perplexity=9.5)


def test_a_point_has_what_is_known_and_a_number():
    """Losses that are none, and what was never measured, are left out; the round and the size of the job are in."""
    found = points.point(DONE, 4, 1000.0, evaluated=True)
    assert (found.step, found.time) == (20, 1000.0)
    assert found.values == {
        "train/loss": 2.5,
        "train/learning_rate": 1e-3,
        "train/epoch": 0.0,
        "validation/loss": 2.25,
        "validation/perplexity": 9.5,
        "job/round": 3.0,
        "job/workers": 4.0,
    }
    infinite = points.point(Progress(rank=0, round=1, step=1, loss=math.inf), 1, 0.0, evaluated=False)
    assert "train/loss" not in infinite.values


def test_validation_is_told_only_where_there_was_one():
    """The last validation loss is known at every later step, and belongs to none of them."""
    assert not {"validation/loss", "validation/perplexity"} & points.point(DONE, 1, 0.0, evaluated=False).values.keys()


@pytest.mark.parametrize(
    ("step", "every", "evaluated", "due"),
    [(20, 10, False, True), (21, 10, False, False), (21, 10, True, True), (99, 10, False, True), (1, 1, False, True)],
    ids=["its-turn", "not-its-turn", "evaluated", "the-last-step", "every-step"],
)
def test_points_are_of_some_steps(step, every, evaluated, due):
    """Every so many, the last, and where there was validation."""
    assert points.is_due(step, every, 99, evaluated=evaluated) is due


@pytest.mark.parametrize(
    ("flash", "suspect", "final"),
    [
        (None, False, 20),
        (None, True, None),
        (Flash(), False, 7),
        (Flash(step=20, committed=18), False, 18),
        (Flash(step=20, committed=18), True, 18),
        (Flash(step=20, trouble="no room"), False, 20),
    ],
    ids=["no-snapshots", "suspect", "none-committed", "committed", "suspect-and-committed", "no-room-for-snapshots"],
)
def test_a_step_is_final_once_it_is_committed(flash, suspect, final):
    """Without snapshots it is at once, unless its loss is suspected."""
    progress = Progress(rank=0, round=1, step=20, flash=flash)
    assert points.final(progress, 7, suspect=suspect) == final


@given(
    st.integers(1, 2**40),
    st.floats(0, 1e10),
    st.dictionaries(st.sampled_from([*FIELDS.values(), "job/workers"]), st.floats(allow_nan=False)),
)
def test_a_point_comes_back_as_it_was(step, time, values):
    """Through the text that goes to the tracker and into snapshots."""
    back = Point.decode(Point(step, time, values).encode())
    assert (back.step, back.values) == (step, values)
    assert back.time == pytest.approx(time, abs=1e-3)


def _point(step: int) -> Point:
    return Point(step, 0.0, {"train/loss": float(step)})


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=40))
def test_what_is_carried_is_all_that_is_not_kept(moves):
    """Steps done again give no second point; what was kept is gone, and everything else there, in order."""
    pending, noted, kept = Pending(), set(), 0
    for step, acknowledged in moves:
        taken = pending.note(_point(step))
        assert taken == (step > max(noted, default=0))
        noted |= {step} if taken else set()
        kept = max(kept, acknowledged)
        pending.kept(kept)
        again = Pending(pending.carried())
        assert again.beyond(0) == pending.beyond(0)
        assert pending.beyond(kept + 3) == [each for each in pending.beyond(0) if each[0] > kept + 3]
    assert {step for step, _ in pending.beyond(0)} == {step for step in noted if step > kept} or not noted


def test_what_is_carried_is_bounded():
    """With a tracker that keeps nothing the newest are carried."""
    pending = Pending()
    for step in range(1, 3 * CARRIED):
        pending.note(_point(step))
    steps = [step for step, _ in pending.beyond(0)]
    assert steps == list(range(2 * CARRIED, 3 * CARRIED))


def test_what_is_carried_is_short_and_nothing_in_it_is_escaped():
    """It is in the header of each snapshot, which is JSON, as long as a tracker answers nobody."""
    pending = Pending()
    values = dict.fromkeys((*FIELDS.values(), "job/workers"), 1234.5678901234567)
    for step in range(1, CARRIED + 1):
        pending.note(Point(step, 1.8e9 + step, values))
    carried = pending.carried()
    assert len(json.dumps(carried)) == len(carried) + CARRIED + 1  # a quote at each end, a backslash at each line's
    assert len(carried) < 1.1e6
