"""A member that was given up and comes back joins nothing twice, and what it says of an old round changes nothing."""

from __future__ import annotations

import dataclasses

import pytest

from llmtrain_operator.contract import names
from llmtrain_operator.contract.wire import Failure
from llmtrain_operator.state import CreatePod, DeletePod
from tests.support.elastic import Job, gone, held, silent, training
from tests.support.planner import agent, pod

LATE = pod(1)
HEIR = pod(1, uid="u1b", incarnation=2, name="j-1-2")


def heir(state="joining", number=0, **fields):
    view = agent(1, state, number, uid="u1b", incarnation=2, pod="j-1-2", **fields)
    return dataclasses.replace(view, uid="u1b")


@pytest.fixture
def replaced() -> Job:
    """Round 2 trains without member 1, whose node was cut off; its replacement is on its way."""
    job = Job()
    job.look(training(0), silent(training(1)), training(2))
    job.look(training(0, 2), silent(training(1), 10.1), training(2, 2), after=7.1)
    assert (job.members, [action.incarnation for action in job.creates]) == ([0, 2], [2])
    return job


@pytest.mark.parametrize("view", [training(1), gone(1), agent(1, "succeeded", 1)], ids=["trains", "joins", "done"])
def test_a_member_that_was_replaced_is_deleted_when_it_comes_back(replaced, view) -> None:
    """Whatever it is doing: until then it is told to leave its workers alone, in no round."""
    replaced.look(training(0, 2), view, heir(), training(2, 2), pods=[pod(0), LATE, HEIR, pod(2)])
    assert replaced.decided.actions == (DeletePod("j-1-1", "u1", "j-1-2 took its place"),)
    assert (replaced.told["u1"], replaced.told["u1b"]) == ("wait", "wait")


def test_of_two_pods_of_an_index_the_newer_one_is_in_the_round(replaced) -> None:
    """Also if the older one, which cannot be deleted while its node is away, is as ready as any."""
    late = dataclasses.replace(LATE, deleting=True)
    seen = [training(0, 2), gone(1), heir(), training(2, 2)]
    replaced.look(*seen, pods=[pod(0), late, HEIR, pod(2)])
    assert replaced.status.round.ending
    replaced.look(gone(0, 2), gone(1), heir(), gone(2, 2), pods=[pod(0), late, HEIR, pod(2)])
    assert [member.pod for member in replaced.status.round.members] == ["j-0-1", "j-1-2", "j-2-1"]
    assert replaced.told["u1"] == "stop"


def test_a_member_whose_memory_is_needed_takes_the_place_of_its_replacement() -> None:
    """It could not be deleted, came back, and has by now what nobody else has: its index is in the round once."""
    job = Job(held, checkpoint={}, nodes={"min": 3, "max": 3, "desired": 3})
    job.look(held(0), silent(held(1), 11), held(2))
    assert (job.members, job.creates) == ([], [CreatePod(1, 2)])
    third = pod(2, uid="u2b", incarnation=2, name="j-2-2")
    other = dataclasses.replace(agent(2, uid="u2b", incarnation=2, pod="j-2-2"), uid="u2b")
    there = held(0, state="joining"), held(1, state="joining"), heir(), other
    job.look(*there, pods=[pod(0), LATE, HEIR, third])
    assert [member.pod for member in job.status.round.members] == ["j-0-1", "j-1-1", "j-2-2"]


def test_progress_of_an_old_round_is_no_progress(replaced) -> None:
    """A single member that was cut off may have trained on by itself: the clock is that of the round."""
    replaced.look(training(0, 2, at=42), training(1, 1, at=900), training(2, 2, at=42), pods=[pod(0), LATE, pod(2)])
    assert (replaced.status.progress.step, replaced.status.checkpoint.step) == (42, 30)


@pytest.mark.parametrize(
    "failure",
    [
        pytest.param(Failure(names.REASON_FENCED, "round 2 has claimed it", 1, rank=1), id="fenced"),
        pytest.param(Failure(names.REASON_NON_FINITE_LOSS, "nan", 1, rank=1), id="permanent"),
    ],
)
def test_a_failure_in_an_old_round_ends_nothing(replaced, failure) -> None:
    """Neither the round without it, nor one that it is in again."""
    failed = agent(1, "failed", 1, store_port=5001, failure=failure)
    replaced.look(training(0, 2), failed, heir(), training(2, 2), pods=[pod(0), LATE, HEIR, pod(2)])
    assert (replaced.members, replaced.status.restarts) == ([0, 2], 1)
    job = Job()
    job.look(training(0), silent(training(1)), training(2))
    back = gone(1, failure=failure)
    job.look(training(0, 2), back, training(2, 2))
    job.look(gone(0, 2), back, gone(2, 2))
    assert job.members == [0, 1, 2]
    job.look(training(0, 3), back, training(2, 3))
    assert (job.members, job.status.restarts, job.status.round.number) == ([0, 1, 2], 1, 3)


@pytest.mark.parametrize("ended", ["failed", "joining", "stopped", "succeeded"])
def test_the_end_of_an_old_round_is_not_that_of_this_one(ended) -> None:
    """A report that was on its way when the next round was published speaks of the last one."""
    job = Job()
    job.look(training(0), training(2), pods=[pod(0), pod(2)])
    old = agent(0, ended, 1, store_port=5000, failure=None)
    job.look(old, training(2, 2), pods=[pod(0), pod(2)])
    assert (job.members, job.status.round.number, job.status.restarts) == ([0, 2], 2, 1)
