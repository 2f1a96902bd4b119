"""What is gone back to when training itself goes wrong, and when no more."""

from __future__ import annotations

import dataclasses

import pytest

from llmtrain_operator import numerics
from llmtrain_operator.contract import names
from llmtrain_operator.contract.wire import Avoid, Failure, Samples, Void
from llmtrain_operator.numerics import MOST, PROGRESS, Ground

NAN = Failure(names.REASON_NON_FINITE_LOSS, "the loss is nan at step 50", 3, step=49, samples=Samples(392, 400))


def judged(*failures, ground=Ground(49, 30), skip=False):  # noqa: B008 - it is frozen
    """All that was gone back to, and the last words."""
    past = []
    for failure in failures:
        made, words = numerics.judge(failure, past, ground, 0.0, skip=skip)
        if made is None:
            return past, words
        past.append(made)
    return past, words


def at(step, number=4):
    return dataclasses.replace(NAN, step=step, round=number)


def test_the_first_time_the_newest_state_is_gone_on_from() -> None:
    """Nothing is void: that state may well be good."""
    [made], words = judged(NAN)
    assert (made.to, made.attempt, made.skip) == (49, 1, None)
    assert numerics.avoid([made]) == Avoid()
    assert words == "going back to step 49, the newest state"


def test_if_it_comes_back_the_newest_state_was_bad_already() -> None:
    """An older one is taken from storage, and all that lies between is void for ever."""
    past, words = judged(NAN, at(49))
    assert (past[1].to, past[1].attempt) == (30, 2)
    assert words == "going back to step 30, the newest durable checkpoint, because it came back"
    assert numerics.avoid(past) == Avoid(void=(Void(30, 4),))


@pytest.mark.parametrize(
    ("failures", "ground", "words"),
    [
        pytest.param([NAN], Ground(None, None), "there is no state to go back to", id="nothing-there"),
        pytest.param(
            [NAN, at(49)], Ground(49, None), "going back to step 49, and durable storage has no older", id="no-storage"
        ),
        pytest.param(
            [NAN, at(49)], Ground(49, 49), "going back to step 49, and durable storage has no older", id="not-older"
        ),
        pytest.param([NAN, at(49), at(49)], Ground(49, 30), "going back to step 49 and step 30", id="both-in-vain"),
        pytest.param([NAN, at(49), at(35)], Ground(49, 30), "going back to step 49 and step 30", id="sooner-still"),
        pytest.param([NAN, at(40), at(60)], Ground(49, 30), "going back to step 49 and step 30", id="a-little-later"),
    ],
)
def test_what_does_not_get_past_it_fails(failures, ground, words) -> None:
    """Within two short rounds, with the trainer's words at the end."""
    past, said = judged(*failures, ground=ground)
    assert len(past) == len(failures) - 1
    assert words in said
    assert said.endswith(NAN.message)


def test_real_progress_makes_it_another_trouble() -> None:
    """The newest state is tried first again."""
    past, _ = judged(NAN, at(49 + PROGRESS), at(49 + 2 * PROGRESS))
    assert [made.attempt for made in past] == [1, 1, 1]


def test_the_samples_are_left_out_from_then_on() -> None:
    """Of every attempt; not if the trainer does not name them."""
    past, words = judged(NAN, dataclasses.replace(at(49), samples=Samples(400, 408)), skip=True)
    assert words.endswith("without samples 400 to 407 of the order")
    assert numerics.avoid(past) == Avoid((Samples(392, 400), Samples(400, 408)), (Void(30, 4),))
    [made], words = judged(dataclasses.replace(NAN, samples=None), skip=True)
    assert (made.skip, words) == (None, "going back to step 49, the newest state")


def test_roll_backs_are_bounded() -> None:
    """However far apart."""
    past, words = judged(*(at(1000 * number) for number in range(MOST + 1)))
    assert len(past) == MOST
    assert words == f"training was rolled back {MOST} times, which is the most: {NAN.message}"


@pytest.mark.parametrize(
    ("step", "number", "void"), [(30, 4, False), (31, 4, True), (60, 3, True), (60, 5, False), (10, 1, False)]
)
def test_what_is_void(step, number, void) -> None:
    """Later steps of earlier rounds; a later round has got there anew."""
    assert Avoid(void=(Void(30, 4),)).voids(step, number) is void
