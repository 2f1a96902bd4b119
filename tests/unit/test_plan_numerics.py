"""A job whose training goes wrong: what its members are told, and what its status says of it."""

from __future__ import annotations

import pytest

from llmtrain_operator.contract import names
from llmtrain_operator.contract.wire import Checkpoints, Failure, Flash, Samples
from tests.support.elastic import Job, gone, training
from tests.support.planner import agent

BATCH = Samples(320, 328)
SKIP = {"recovery": {"numerics": "rollbackAndSkip"}}


def told(index, number=1, at=40, restored=None):
    """A member that trains with copies in memory, and a checkpoint of step 30 in storage."""
    said = Flash(step=at, committed=at - 1, copies=1, kept_by=((index + 1) % 3,), every=1, kept=restored)
    return training(index, number, at, checkpoints=Checkpoints(step=30, restored_step=restored), flash=said)


def wrong(job, number, reason=names.REASON_NON_FINITE_LOSS):
    """All members say so, and are ready for another round."""
    said = [Failure(reason, "the loss is nan at step 41", number, rank, step=40, samples=BATCH) for rank in range(3)]
    job.look(*(agent(rank, "joining", number, store_port=6000 + rank, failure=said[rank]) for rank in range(3)))


def trained(**fields):
    job = Job(**fields)
    job.look(*map(told, range(3)))
    return job


def again(job, number, restored):
    """The next round is formed, restores that step, and takes one more."""
    job.look(*(gone(index, number - 1) for index in range(3)))
    assert job.status.round.number == number
    at = min(restored + 1, 40)
    job.look(*(told(index, number, at, restored) for index in range(3)))


@pytest.mark.parametrize("reason", sorted(names.NUMERIC_REASONS))
def test_training_goes_on_from_memory(reason) -> None:
    """In a new round, at once; it is no lost step, none of the restarts of the budget, and told as what it is."""
    job = trained()
    wrong(job, 1, reason)
    assert job.status.state == "Recovering"
    assert job.reason("Recovering") == "RolledBack"
    assert "RolledBack" in job.events
    assert "going back to step 39, the newest state: member 0 (rank 0) at step 40" in job.message("Recovering")
    assert job.status.failures_counted == 0
    assert job.status.progress.step == 39
    again(job, 2, 39)
    assert job.decided.directives["u0"].round.avoid.void == ()
    [incident] = job.status.incidents
    assert (incident.reason, incident.lost_steps, incident.outcome) == (reason, 0, "Recovered")
    assert [made.to for made in job.status.rollbacks] == [39]


def test_if_it_comes_back_storage_is_gone_on_from_though_memory_has_more() -> None:
    """Nobody waits for what is in memory, which every later round is told not to take; no step counts as lost."""
    job = trained()
    wrong(job, 1)
    again(job, 2, 39)
    wrong(job, 2)
    assert job.status.flash.holders == ()
    assert job.status.progress.step == 30
    again(job, 3, 30)
    avoid = job.decided.directives["u0"].round.avoid
    assert (avoid.voids(39, 2), avoid.voids(30, 1), avoid.voids(39, 3), avoid.skip) == (True, False, False, ())
    assert [(incident.committed_step, incident.lost_steps) for incident in job.status.incidents] == [(39, 0), (30, 0)]
    wrong(job, 3)
    assert job.status.state == "Failed"
    assert job.reason("Failed") == "NonFiniteLoss"
    assert "came back after going back to step 39 and step 30: the loss is nan" in job.message("Failed")


def test_a_fault_and_then_a_roll_back_are_one_incident_without_lost_steps() -> None:
    """What is given up on purpose is not lost by the fault before."""
    job = trained()
    wrong(job, 1)
    job.look(*(gone(index, 1) for index in range(3)))
    wrong(job, 2)
    again(job, 3, 30)
    [incident] = job.status.incidents
    assert (incident.faults, incident.committed_step, incident.lost_steps) == (2, 30, 0)


def test_the_batch_is_left_out_in_all_later_rounds() -> None:
    """Also after a loss of another kind."""
    job = trained(**SKIP)
    wrong(job, 1)
    assert "without samples 320 to 327" in job.message("Recovering")
    again(job, 2, 39)
    assert job.decided.directives["u0"].round.avoid.skip == (BATCH,)
    killed = Failure(names.REASON_KILLED, "signal 9", 2, 0, step=60, signal=9)
    job.look(*(agent(index, "joining", 2, store_port=7000 + index, failure=killed) for index in range(3)))
    again(job, 3, 39)
    assert job.decided.directives["u0"].round.avoid.skip == (BATCH,)


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"recovery": {"numerics": "fail"}}, id="as-was-asked-for"),
        pytest.param({"entrypoint": {"script": "train.py"}}, id="a-script-of-the-users"),
    ],
)
def test_without_roll_backs_it_fails_at_once(fields) -> None:
    """In the trainer's own words."""
    job = trained(**fields)
    wrong(job, 1)
    assert job.status.state == "Failed"
    assert job.message("Failed") == "the loss is nan at step 41"


def test_with_nothing_to_go_back_to_it_fails_at_once() -> None:
    """No snapshot is committed and no checkpoint saved."""
    job = Job(checkpoint={})
    wrong(job, 1)
    assert job.status.state == "Failed"
    assert "there is no state to go back to: the loss is nan" in job.message("Failed")
