"""What a job's status says of its time, from pass to pass."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtrain_operator.api import JobStatus
from llmtrain_operator.conditions import timestamp
from llmtrain_operator.contract import names
from llmtrain_operator.contract.wire import Failure, Progress, Spent
from llmtrain_operator.state import AgentView
from tests.support.elastic import Job, gone
from tests.support.planner import NOW, agent, pod


def told(index: int, number: int, step: int, spent: Spent | None, phase="training", **fields) -> AgentView:
    """A member that says where its time went."""
    progress = Progress(index, number, phase, step=step, max_steps=1000, loss=2.0, step_seconds=0.5, spent=spent)
    return agent(index, "running", number, store_port=5000 + index, progress=progress, **fields)


def trains(step: int, seconds: float, *, number=1, first=0, loading=0.0, **more: float) -> list[AgentView]:
    """Three members at `step`, which have spent so much on all steps since the round's first."""
    spent = Spent(step - first, loading=loading, stepping=seconds, **more)
    return [told(index, number, step, spent) for index in range(3)]


def times(status: JobStatus) -> dict[str, float]:
    """What there is of the ledger, which adds up."""
    return {cause: seconds for cause, seconds in status.ledger.items() if seconds}


KILLED = Failure(names.REASON_KILLED, "signal 9", 1, rank=1, step=60, signal=9)


def test_what_the_members_measured_counts() -> None:
    """Waiting for data and standing still for snapshots is not training."""
    job = Job()
    job.look(*trains(60, 7.0, loading=1.0, data=0.5, snapshots=0.25, durable=0.25), after=9)
    assert times(job.status) == {
        "starting": 2.0, "productive": 7.0, "dataWait": 0.5, "snapshot": 0.25, "durableWait": 0.25,
    }  # fmt: skip
    assert job.status.goodput == "70.0%"
    assert {each: value / 3 for each, value in job.status.accelerator_ledger.items()} == pytest.approx(
        job.status.ledger
    )


def test_steps_that_are_done_again_are_no_progress() -> None:
    """By their time: ten of forty. The incident has all that the fault cost, and is told when that is known."""
    job = Job()
    job.look(*trains(60, 8.0, loading=1.0), after=9)
    failed = dataclasses.replace(
        told(1, 1, 60, Spent(60, loading=1.0, stepping=8.0)).report, state="failed", failure=KILLED
    )
    spent = Spent(60, loading=1.0, stepping=8.0)
    others = [told(0, 1, 60, spent), told(2, 1, 60, spent)]
    job.look(others[0], AgentView("u1", True, 0.0, "", failed), others[1], after=1)
    job.look(gone(0), gone(1, failure=KILLED), gone(2), after=0.5)
    assert job.status.round.number == 2
    job.look(*trains(54, 2.0, number=2, first=50, loading=1.0), after=3.5)
    [incident] = job.status.incidents
    assert incident.badput == {"detect": 1.0, "restart": 2.0, "recompute": 2.0}, "so far"
    job.look(*trains(90, 20.0, number=2, first=50, loading=1.0), after=18)
    [incident] = job.status.incidents
    assert incident.badput == {"detect": 1.0, "restart": 2.0, "recompute": 5.0}
    assert times(job.status) == {"starting": 2.0, "productive": 23.0, "detect": 1.0, "restart": 2.0, "recompute": 5.0}
    assert (job.status.tally.before, [each.cause for each in job.status.timeline][:4]) == (
        None, ["starting", "productive", "detect", "restart"],
    )  # fmt: skip


def test_steps_that_nobody_had_told_of_were_done_all_the_same() -> None:
    """The next round goes on at step 70, so that the ten after the last that was told of were done before the loss."""
    job = Job()
    job.look(*trains(60, 6.0, loading=1.0), after=6.5)
    job.look(*trains(60, 6.0, loading=1.0)[::2], pods=[pod(0), pod(2)], after=3)
    assert job.status.ledger["detect"] == 3.0
    job.look(*trains(75, 0.5, number=2, first=70, loading=1.0)[::2], pods=[pod(0), pod(2)], after=2)
    assert (job.status.ledger["detect"], job.status.ledger["productive"]) == (2.0, 7.5)


def test_a_member_that_is_further_is_where_all_are() -> None:
    """Its report is newer; the account is rank 0's, at its own pace."""
    job = Job()
    behind = told(0, 1, 60, Spent(60, loading=1.0, stepping=6.0))
    ahead = [told(index, 1, 70, Spent(70, loading=1.25, stepping=6.8, data=0.2)) for index in (1, 2)]
    job.look(behind, *ahead, after=8)
    assert times(job.status) == {"starting": 2.0, "productive": 7.0}


def test_the_time_without_an_operator_is_what_the_members_say() -> None:
    """They trained on, for ten minutes; then a new operator goes on from the status."""
    job = Job()
    job.look(*trains(60, 6.0, loading=1.0), after=7)
    job.look(*trains(1260, 600.0, loading=1.0, snapshots=6.0), after=600)
    assert times(job.status) == {"starting": 2.0, "productive": 600.0, "snapshot": 6.0}


def test_before_the_members_are_heard_again_they_are_taken_to_train() -> None:
    """What they say then counts, also of the time before."""
    job = Job()
    job.look(*trains(60, 6.0, loading=1.0), after=7)
    job.look(after=10)
    assert times(job.status) == {"starting": 2.0, "productive": 16.0}
    job.look(*trains(80, 9.0, loading=1.0, data=7.0), after=1)
    assert times(job.status) == {"starting": 2.0, "productive": 10.0, "dataWait": 7.0}


def test_an_accelerator_whose_pod_is_in_no_round_is_idle() -> None:
    """It is paid for: a replacement that comes up, a spare. One that has no node costs nothing."""
    job = Job()
    job.look(*trains(60, 6.0, loading=1.0)[::2], pods=[pod(0), pod(2)], after=7)
    seen = [pod(0), pod(1, uid="v1", phase="Pending", scheduled=False), pod(2)]
    job.look(*trains(60, 1.0, number=2, first=40)[::2], pods=seen, after=2)
    assert job.status.accelerator_ledger.get("idle", 0.0) == 0.0
    seen = [pod(0), pod(1, uid="v1", phase="Pending"), pod(2)]
    job.look(*trains(80, 5.0, number=2, first=40)[::2], pods=seen, after=5)
    assert job.status.accelerator_ledger["idle"] == 5.0


@pytest.mark.parametrize(
    ("leave", "cause"), [pytest.param(True, "drain", id="drain"), pytest.param(False, "resize", id="resize")]
)
def test_a_planned_pause_goes_to_what_it_is_for(leave: bool, cause: str) -> None:
    """Saving, leaving and starting again, in a drain as in a change of size."""
    job = Job()
    if leave:
        here = [pod(0), pod(1, deleting=True), pod(2)]
    else:
        here, job.fields["nodes"] = list(map(pod, range(3))), {"min": 2, "max": 3, "desired": 2}
    job.look(*trains(60, 6.0, loading=1.0), pods=here, after=7)
    assert job.status.round.ending is not None
    saving = Spent(60, loading=1.0, stepping=6.0, saving=1.0)
    job.look(*(told(index, 1, 60, saving, "saving") for index in range(3)), pods=here, after=1)
    job.look(gone(0), gone(1), gone(2), pods=here, after=1)
    job.look(*trains(61, 1.0, number=2, first=60, loading=1.0)[::2], pods=[pod(0), pod(2)], after=2)
    assert job.status.ledger[cause] == 3.0
    assert sum(job.status.ledger.values()) == job.now - NOW


def test_a_ledger_of_an_older_operator_is_carried_on() -> None:
    """With the causes that it knew; the round that runs is measured from here on."""
    job = Job()
    old = {"ledger": {"productive": 100.0, "save": 5.0, "starting": 10.0}, "tally": JobStatus().tally, "timeline": ()}
    job.status = job.status.model_copy(update=old | {"ledger_time": timestamp(job.now)})
    job.look(*trains(400, 100.0, loading=10.0), after=1)
    assert job.status.ledger["save"] == 5.0
    assert sum(job.status.ledger.values()) == pytest.approx(116.0)


@given(st.lists(st.tuples(st.floats(0.001, 100.0), st.integers(0, 50), st.floats(0, 1), st.booleans()), max_size=30))
def test_whatever_the_members_say_the_ledger_is_wall_time(history) -> None:
    """In accelerator time it is three times as much, with three members throughout."""
    job = Job()
    step, spent = 40, Spent(40, stepping=1.0)
    for seconds, steps, share, heard in history:
        step += steps
        waits = {"data": spent.data + seconds * share * 0.5, "stepping": spent.stepping + seconds * share}
        spent = dataclasses.replace(spent, steps=step, **waits)
        job.look(*(told(index, 1, step, spent) for index in range(3)) if heard else (), after=round(seconds, 3))
    lived = job.now - NOW
    assert sum(job.status.ledger.values()) == pytest.approx(lived, abs=0.002)
    assert sum(job.status.accelerator_ledger.values()) == pytest.approx(3 * lived, abs=0.01)
