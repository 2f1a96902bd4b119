"""Who is persistently slower than the others, and who is not."""

from __future__ import annotations

import random
import statistics
from collections import deque

import pytest

from llmtrain_operator.contract.wire import Pace
from llmtrain_operator.stragglers import KEEPS_UP, KEPT, LASTS, SLOW, STEPS, Seat, lags, watched

NOW = 1_700_000_000.0


def paces(*own, step=1.0):
    return [Pace(rank, seconds, step) for rank, seconds in enumerate(own)]


class Job:
    """A job whose workers report `own` seconds; `look` once a second, at a step a second."""

    def __init__(self, world, procs=1):
        self.seats = [Seat(10 + rank // procs, f"n{rank // procs}") for rank in range(world)]
        self.now, self.step, self.known = NOW, 100, ()

    def look(self, *own, times=1, steps=1, step_seconds=1.0):
        for _ in range(times):
            self.now += 1.0
            self.step += steps
            seen = lags(paces(*own, step=step_seconds))
            self.known = watched(self.known, seen, self.seats, self.step, self.now)
            again = watched(self.known, seen, self.seats, self.step, self.now)
            assert again == self.known, "a look that is repeated changes nothing"
        return self.found

    @property
    def found(self):
        return [each.member for each in self.known if each.found]


@pytest.mark.parametrize(
    ("own", "step", "slow"),
    [
        pytest.param((0.5, 0.5, 0.7), 1.0, [2], id="one of three"),
        pytest.param((0.5, 0.5, 0.6), 1.0, [], id="a little slower"),
        pytest.param((0.5, 0.7), 1.0, [1], id="the slower one of two"),
        pytest.param((0.5,), 1.0, [], id="nobody to compare with"),
        pytest.param((), 1.0, [], id="nobody has told"),
        pytest.param((0.01, 0.01, 0.02), 1.0, [], id="it costs nothing worth having"),
        pytest.param((0.5, 0.8, 0.9, 0.5, 0.5), 1.0, [1, 2], id="two of five"),
        pytest.param((0.5, 0.9, 0.5, 0.9), 1.0, [1, 3], id="half of them: each has a majority of the fast to face"),
        pytest.param((0.5, 0.9, 0.9), 1.0, [], id="most of them: they are the measure"),
        pytest.param((0.0, 0.0, 0.5), 1.0, [], id="peers without any time of their own"),
    ],
)
def test_a_worker_is_slow_against_the_median_of_the_others(own, step, slow):
    """By a third, and so that it costs a twentieth of a step."""
    seen = lags(paces(*own, step=step))
    assert [lag.rank for lag in seen if lag.exceeds(SLOW)] == slow
    for lag in seen:
        others = [seconds for rank, seconds in enumerate(own) if rank != lag.rank]
        assert lag.peers == pytest.approx(statistics.median(others))


def test_only_what_lasts_is_found_and_it_says_since_when():
    """Watched from the first look on, counted after half a minute."""
    job = Job(3)
    assert not job.look(0.5, 0.5, 0.8, times=int(LASTS))
    assert job.look(0.5, 0.5, 0.8) == [12]
    (slow,) = job.known
    assert (slow.rank, slow.node, slow.factor, slow.step) == (2, "n2", 1.6, 101)
    assert slow.since == "2023-11-14T22:13:21.000Z"


def test_seconds_without_steps_prove_nothing():
    """A pace that is told again and again is one observation: while a job evaluates, or its steps take long."""
    job = Job(3)
    assert not job.look(0.5, 0.5, 0.8, times=300, steps=0)
    assert job.look(0.5, 0.5, 0.8, times=STEPS) == [12]


def test_a_break_begins_the_watch_anew():
    """Slow now and then is not persistently slow."""
    job = Job(3)
    for _ in range(20):
        assert not job.look(0.5, 0.5, 0.8, times=25)
        assert not job.look(0.5, 0.5, 0.5)
    assert not job.known


def test_one_that_was_found_counts_until_it_has_kept_up_for_a_while():
    """Between the limits nothing changes, whichever side it came from."""
    job = Job(3)
    job.look(0.5, 0.5, 0.8, times=40)
    between = 0.5 * (SLOW.factor + KEEPS_UP.factor) / 2
    assert job.look(0.5, 0.5, between, times=100) == [12]
    assert job.look(0.5, 0.5, 0.5, times=int(LASTS)) == [12]
    assert job.look(0.5, 0.5, 0.8) == [12]
    assert job.look(0.5, 0.5, 0.5, times=int(LASTS)) == [12]
    assert not job.look(0.5, 0.5, 0.5)
    assert not job.look(0.5, 0.5, between, times=100)


def test_one_that_does_not_tell_stays_what_it_was():
    """An agent that dials again is no news about its workers."""
    job = Job(3)
    job.look(0.5, 0.5, 0.8, times=40)
    assert job.look(0.5, 0.5, times=100) == [12]


def test_a_member_is_named_once_by_its_slowest_worker():
    """The one that was named first, as long as it is slow too."""
    job = Job(4, procs=2)
    assert job.look(0.5, 0.5, 0.8, 0.9, times=40) == [11]
    assert [each.rank for each in job.known] == [3]
    job.look(0.5, 0.5, 0.9, 0.8)
    assert [each.rank for each in job.known] == [3]
    job.look(0.5, 0.5, 0.9, 0.5)
    assert [each.rank for each in job.known] == [2]


def test_the_record_is_bounded_and_keeps_those_who_were_found():
    """Hundreds may be slow for a moment."""
    job = Job(100)
    fast = [0.5] * 60
    job.look(*fast, 0.8, *[0.5] * 39, times=40)
    job.look(*fast, 0.8, *[2.0] * 39)
    assert len(job.known) == KEPT
    assert (job.known[0].member, job.found) == (70, [70])


def told(rank, steps):
    """The median that a worker tells, of its last 15 `steps`."""
    return Pace(rank, statistics.median(steps), 1.0)


@pytest.mark.parametrize(("slow", "found"), [(None, []), (3, [13])], ids=["noise alone", "one slow in the noise"])
def test_ten_thousand_noisy_steps_name_only_who_is_slow(slow, found):
    """Every tenth step of a worker takes 2 to 5 times as long, the others vary by a fifth; first steps take long."""
    chance = random.Random(7)
    world, job, named = 4, Job(4), set()
    recent = [deque([5.0 * (rank + 1)] * 3, maxlen=15) for rank in range(world)]
    for step in range(10_000):
        for rank, steps in enumerate(recent):
            base = 0.5 * chance.uniform(0.9, 1.1) * (1.4 if rank == slow else 1.0)
            steps.append(base * (chance.uniform(2.0, 5.0) if chance.random() < 0.1 else 1.0))
        if step < 15:
            continue
        seen = lags([told(rank, steps) for rank, steps in enumerate(recent)])
        job.known = watched(job.known, seen, job.seats, step, NOW + step)
        named |= set(job.found)
    assert sorted(named) == found == job.found
