"""Warm spares: pods beyond the members wanted, one of which takes a lost member's place in the very next round."""

from __future__ import annotations

import dataclasses

import pytest

from llmtrain_operator.contract import names
from llmtrain_operator.contract.wire import Checkpoints, Failure, Flash
from llmtrain_operator.membership import REJOIN_PATIENCE
from llmtrain_operator.plan.resize import GROWTH_PATIENCE
from llmtrain_operator.state import CreatePod, DeletePod
from tests.support.elastic import NODES, Job, gone, missed, silent, training
from tests.support.planner import agent, condition, pod

SPARE = NODES | {"spares": 1}
KILLED = Failure(names.REASON_KILLED, "signal 9", 1, rank=1, step=40, signal=9)
STARTING = agent(1, "failed", 1, store_port=5001, failure=KILLED)


def spare(index: int = 3):
    """A pod that was in no round and is ready for one."""
    return agent(index)


def four(**changed):
    """Three members and a spare; `changed`: other facts by pod, as `pod_1={...}`."""
    return [pod(index, node=f"n{index}", **changed.get(f"pod_{index}", {})) for index in range(4)]


@pytest.fixture
def job() -> Job:
    """Round 1 trains with members 0, 1 and 2; pod 3 is a spare and ready."""
    made = Job(nodes=SPARE)
    assert [create.index for create in made.creates] == [3]
    made.status = made.status.model_copy(update={"incarnations": dict.fromkeys("0123", 1)})
    made.look(*map(training, range(3)), spare(), pods=four())
    assert (made.members, made.status.nodes, made.status.spares, made.decided.actions) == ([0, 1, 2], "3/3", 1, ())
    return made


# --- beside the members ---------------------------------------------------------------------------------------------


def test_a_spare_is_no_member(job: Job) -> None:
    """It waits, the round does not grow by it, and whoever scales the job does not see it."""
    job.look(*map(training, range(3)), spare(), pods=four(), after=GROWTH_PATIENCE)
    assert (job.told["u3"], job.status.round.ending, job.status.replicas) == ("wait", None, 3)
    assert condition(job.status, "Resizing") == ("False", "AtTarget")
    assert condition(job.status, "Scheduled") == ("True", "AllPlaced")
    assert "and 1 of 1 spares" in job.message("Scheduled")


def test_a_spare_without_a_place_is_nobodys_trouble(job: Job) -> None:
    """The members are all there: the job is whole, and says how many spares are."""
    waiting = {"phase": "Pending", "scheduled": False, "unschedulable_message": "no room"}
    job.look(*map(training, range(3)), pods=four(pod_3=waiting))
    assert (job.status.state, job.status.spares, job.decided.actions) == ("Running", 0, ())
    assert condition(job.status, "Scheduled") == ("True", "AllPlaced")
    assert "and 0 of 1 spares" in job.message("Scheduled")
    assert condition(job.status, "Resizing") == ("False", "AtTarget")


@pytest.mark.parametrize(
    ("agents", "pods"),
    [
        pytest.param((), four()[:3], id="pod-gone"),
        pytest.param((silent(spare(), 11.0),), four(), id="node-off"),
        pytest.param((), four(pod_3={"phase": "Failed", "reason": "Error"}), id="ended"),
    ],
)
def test_the_loss_of_a_spare_costs_nothing(job: Job, agents, pods) -> None:
    """No round, no budget, no failure on record: another one is made."""
    job.look(*map(training, range(3)), *agents, pods=pods)
    assert (job.members, job.status.state, job.status.spares) == ([0, 1, 2], "Running", 0)
    assert (job.status.restarts, job.status.failures_counted, job.status.last_failure) == (0, 0, None)
    assert job.creates == [CreatePod(3, 2)]


def test_spares_that_end_again_and_again_are_made_ever_more_slowly_and_fail_nobody(job: Job) -> None:
    """However often: the job trains, and what they went through is not held against its next round."""
    job.fields["recovery"] = {"maxRestarts": 1}
    for incarnation in range(1, 6):
        ended = pod(3, uid=f"s{incarnation}", incarnation=incarnation, phase="Failed", reason="Error")
        job.look(*map(training, range(3)), pods=[*four()[:3], ended], after=120)
    assert (job.status.state, job.status.pod_failures, job.events) == ("Running", 5, ["PodFailed"])
    assert (job.creates, job.decided.look_again) == ([], pytest.approx(16.0))
    broken = pod(1, phase="Failed", reason="Evicted"), pod(3, uid="s6", incarnation=6, phase="Failed", reason="Error")
    job.look(training(0), training(2), pods=[pod(0), broken[0], pod(2)], after=120)
    job.look(gone(0), gone(2), pods=[pod(0), pod(2), broken[1]], after=1)
    assert job.status.state != "Failed"


def test_spares_are_asked_for_and_sent_away_at_any_time(job: Job) -> None:
    """The round goes on as it is."""
    job.fields["nodes"] = NODES | {"spares": 2}
    job.look(*map(training, range(3)), spare(), pods=four())
    assert (job.creates, job.status.round.ending) == ([CreatePod(4, 1)], None)
    job.fields["nodes"] = NODES
    job.look(*map(training, range(3)), spare(), pods=four())
    assert [action.name for action in job.decided.actions if isinstance(action, DeletePod)] == ["j-3-1"]
    assert (job.status.round.ending, job.status.spares) == (None, None)


# --- in a lost member's place ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("agents", "pods"),
    [
        pytest.param((training(0), training(2)), [four()[i] for i in (0, 2, 3)], id="pod-gone"),
        pytest.param((training(0), missed(training(1)), training(2)), four(), id="node-off"),
        pytest.param((training(0), training(2)), four(pod_1={"phase": "Failed", "reason": "Evicted"}), id="pod-failed"),
    ],
)
def test_a_spare_takes_a_lost_members_place_at_once(job: Job, agents, pods) -> None:
    """The pass that sees the loss forms a round of full size; the lost member's successor will be the spare."""
    job.look(*agents, spare(), pods=pods)
    assert (job.members, job.status.round.number, job.status.nodes) == ([0, 2, 3], 2, "3/3")
    assert job.told["u0"] == job.told["u2"] == job.told["u3"] == "run"
    assert job.events == ["MemberLost", "RoundStarted"]
    # A pod that is merely silent is given some seconds to come back.
    after = [pod for pod in pods if pod.index != 1]
    later = training(0, 2), training(2, 2), training(3, 2)
    job.look(*later, pods=after)
    successor = [pod(1, uid="new", incarnation=2, name="j-1-2")]
    job.look(*later, pods=[*after, *successor])
    assert (job.status.state, job.status.spares, job.decided.actions) == ("Running", 0, ())
    newcomer = agent(1, uid="new", incarnation=2, pod="j-1-2")
    job.look(*later, dataclasses.replace(newcomer, uid="new"), pods=[*after, *successor], after=60)
    assert (job.members, job.status.round.ending, job.status.spares) == ([0, 2, 3], None, 1)
    assert (job.told["new"], job.decided.actions) == ("wait", ())


def test_a_member_that_comes_back_is_the_spare_then(job: Job) -> None:
    """Its network was cut for some seconds: it is neither replaced nor taken in again."""
    job.look(training(0), missed(training(1)), training(2), spare(), pods=four())
    job.look(training(0, 2), gone(1), training(2, 2), training(3, 2), pods=four(), after=4)
    assert (job.members, job.status.spares, job.decided.actions) == ([0, 2, 3], 1, ())
    assert job.status.round.ending is None


def test_a_drained_member_is_replaced_by_a_spare(job: Job) -> None:
    """It saves and leaves like any other, and the round after that is of full size."""
    pods = four(pod_1={"deleting": True})
    job.look(*map(training, range(3)), spare(), pods=pods)
    assert job.told == {"u0": "save", "u1": "stop", "u2": "save", "u3": "wait"}
    job.look(gone(0), agent(1, "stopped", 1), gone(2), spare(), pods=pods)
    assert (job.members, job.status.restarts) == ([0, 2, 3], 0)


@pytest.mark.parametrize(
    ("agents", "after", "members"),
    [
        pytest.param((gone(1, failure=KILLED),), 0.2, [0, 1, 2], id="it-is-back"),
        pytest.param((STARTING,), 0.2, [], id="about-to-be-back"),
        pytest.param((STARTING,), REJOIN_PATIENCE + 0.1, [0, 2, 3], id="not-back-in-time"),
        pytest.param((silent(STARTING),), 0.2, [0, 2, 3], id="lost-after-all"),
    ],
)
def test_a_member_whose_worker_was_killed_keeps_its_place(job: Job, agents, after, members) -> None:
    """It has its state at hand and is back within moments; a spare would have to fetch it. Its time is short."""
    job.look(training(0), STARTING, training(2), spare(), pods=four())
    assert (job.members, job.decided.look_again) == ([], pytest.approx(REJOIN_PATIENCE))
    job.look(gone(0), *agents, gone(2), spare(), pods=four(), after=after)
    assert job.members == members


def test_at_the_minimum_a_place_that_is_kept_is_looked_after() -> None:
    """Nothing else would wake the planner when the time is over."""
    job = Job(nodes=SPARE | {"min": 3})
    job.look(training(0), STARTING, training(2), spare(), pods=four())
    assert (job.members, job.decided.look_again) == ([], pytest.approx(REJOIN_PATIENCE))
    assert "BelowMinimum" not in job.events


def test_without_checkpoints_a_spare_is_taken_at_once() -> None:
    """The round begins again in any case; nobody need be waited for."""
    job = Job(nodes=SPARE, checkpoint={"flash": {"enabled": False}})
    job.look(training(0), training(2), spare(), pods=[four()[i] for i in (0, 2, 3)])
    assert job.members == [0, 2, 3]


def test_more_losses_than_spares_give_a_smaller_round() -> None:
    """The spare is in it, and the successors join later."""
    job = Job(nodes=SPARE)
    job.look(training(0), missed(training(1)), missed(training(2)), spare(), pods=four())
    assert (job.members, job.status.nodes) == ([0, 3], "2/3")


def test_a_round_grows_by_a_spare_without_waiting_for_more(job: Job) -> None:
    """As soon as all members that are wanted are there; the pod that is still missing will be a spare."""
    job.fields["nodes"] = SPARE | {"max": 4, "desired": 4}
    waiting = pod(4, phase="Pending", scheduled=False, unschedulable_message="no room")
    job.look(*map(training, range(3)), spare(), pods=[*four(), waiting])
    assert (job.status.round.ending.reason, "1 more is ready" in job.message("Resizing")) == ("Resize", True)


def test_a_start_waits_for_the_members_alone() -> None:
    """Whoever is ready first is a member, whatever its index."""
    job = Job(nodes=SPARE)
    job.status = job.status.model_copy(update={"round": None, "rounds": 0, "state": "Starting"})
    job.look(agent(0), agent(1), agent(3), pods=four(pod_2={"phase": "Pending"}))
    assert job.members == [0, 1, 3]


# --- and what lies in memory ----------------------------------------------------------------------------------------


def told(index: int, number: int = 1, copies: int = 1):
    """A member with a snapshot of step 39 in memory, and `copies` of it elsewhere."""
    kept_by = ((index + 1) % 3,) if copies else ()
    flash = Flash(step=40, committed=39, copies=copies, kept_by=kept_by, every=1)
    return training(index, number, checkpoints=Checkpoints(), flash=flash)


def from_memory(copies: int = 1) -> Job:
    """A job without storage, with a spare."""
    job = Job(nodes=SPARE, checkpoint={})
    job.look(*(told(index, copies=copies) for index in range(3)), spare(), pods=four())
    return job


def test_a_spare_takes_over_from_the_copies_in_memory() -> None:
    """The lost member's snapshot lies with its buddy, who is in the round."""
    job = from_memory()
    job.look(told(0), missed(told(1)), told(2), spare(), pods=four())
    assert (job.members, job.status.progress.step) == ([0, 2, 3], 39)


def test_nobody_who_has_what_is_needed_goes_for_a_spare() -> None:
    """Member 1 was cut off and is back. The spare that stood in for it has been in a round, but has nothing yet."""
    job = from_memory()
    job.look(told(0), missed(told(1)), told(2), spare(), pods=four())
    assert job.members == [0, 2, 3]
    failed = agent(3, "failed", 2, store_port=5003, failure=dataclasses.replace(KILLED, round=2))
    job.look(training(0, 2), gone(1), training(2, 2), failed, pods=four())
    job.look(gone(0, 2), gone(1), gone(2, 2), gone(3, 2), pods=four())
    assert job.members == [0, 1, 2]


def test_a_member_without_whom_memory_is_lost_is_waited_for() -> None:
    """Nobody has a copy of what it has; a spare would begin at step 0 in its place."""
    job = from_memory(copies=0)
    late = agent(1, "failed", 1, store_port=5001, failure=KILLED)
    job.look(told(0, copies=0), late, told(2, copies=0), spare(), pods=four())
    job.look(gone(0), late, gone(2), spare(), pods=four(), after=REJOIN_PATIENCE + 1)
    assert (job.members, "hold what is in memory" in job.message("Running")) == ([], True)
    job.look(gone(0), gone(1), gone(2), spare(), pods=four())
    assert job.members == [0, 1, 2]


# --- the end --------------------------------------------------------------------------------------------------------


def test_spares_end_with_the_job(job: Job) -> None:
    """When the members are done they are told to stop."""
    job.look(*(agent(index, "succeeded", 1) for index in range(3)), spare(), pods=four())
    assert (job.status.state, job.status.spares, job.told["u3"]) == ("Complete", None, "stop")


def test_spares_end_with_a_suspension(job: Job) -> None:
    """They are deleted with the members, after these have saved."""
    job.fields["suspend"] = True
    job.look(*map(training, range(3)), spare(), pods=four())
    assert (job.told["u3"], job.decided.actions) == ("wait", ())
    job.look(*map(gone, range(3)), spare(), pods=four())
    assert (job.status.state, job.status.spares) == ("Suspended", None)
    assert sorted(action.name for action in job.decided.actions) == ["j-0-1", "j-1-1", "j-2-1", "j-3-1"]


def test_scaling_down_makes_a_spare_of_a_member(job: Job) -> None:
    """It is there already; only what is beyond members and spares goes."""
    job.fields["nodes"] = SPARE | {"desired": 2}
    job.look(*map(training, range(3)), spare(), pods=four())
    assert [action.name for action in job.decided.actions] == ["j-3-1"]
    job.look(*map(gone, range(3)), pods=four()[:3])
    assert (job.members, job.status.nodes, job.decided.actions) == ([0, 1], "2/2", ())
    job.look(training(0, 2), training(1, 2), gone(2), pods=four()[:3])
    assert (job.status.spares, job.status.replicas) == (1, 2)
