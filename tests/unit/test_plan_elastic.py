"""Jobs that have somewhere to go on from: smaller at once, larger again at a step boundary, saved before they stop."""

from __future__ import annotations

import dataclasses

import pytest

from llmtrain_operator.api import FailureStatus
from llmtrain_operator.conditions import timestamp
from llmtrain_operator.contract import names
from llmtrain_operator.contract.wire import Checkpoints, Failure, Progress
from llmtrain_operator.plan.resize import GROWTH_PATIENCE, SAVE_PATIENCE
from llmtrain_operator.state import AgentView, CreatePod, DeletePod
from tests.support.elastic import NODES, Job, gone, missed, silent, training
from tests.support.planner import NOW, agent, condition, pod

FULL = {"error": "pvc://c/j: no space left on device", "error_reason": names.REASON_STORAGE_FULL}


# --- smaller at once ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pods", "agents"),
    [
        pytest.param([pod(0), pod(2)], (training(0), training(2)), id="pod-gone"),
        pytest.param(
            [pod(0), pod(1, deleting=True), pod(2)], (training(0), agent(1, "stopped", 1), training(2)), id="pod-ends"
        ),
        pytest.param(
            [pod(0), pod(1, phase="Failed", reason="Evicted"), pod(2)], (training(0), training(2)), id="pod-failed"
        ),
        pytest.param(map(pod, range(3)), (training(0), silent(training(1)), training(2)), id="silence"),
        pytest.param(map(pod, range(3)), (training(0), missed(training(1)), training(2)), id="node-off"),
    ],
)
def test_those_who_are_left_go_on_at_once(pods, agents) -> None:
    """The pass that sees the loss forms the next round, which costs no budget."""
    job = Job()
    job.look(*agents, pods=pods)
    assert (job.members, job.status.round.number) == ([0, 2], 2)
    assert job.told["u0"] == job.told["u2"] == "run"
    assert job.events == ["MemberLost", "RoundStarted"]
    assert (job.status.state, job.status.restarts, job.status.failures_counted) == ("Recovering", 1, 0)


def test_a_silent_pod_is_replaced_later_than_it_is_left_behind() -> None:
    """A pod that is gone is replaced at once; one that may come back would only have to join."""
    job = Job()
    job.look(training(0), training(2), pods=[pod(0), pod(2)])
    assert job.creates == [CreatePod(1, 2)]
    job = Job()
    job.look(training(0), silent(training(1)), training(2))
    assert (job.members, job.creates, job.decided.look_again) == ([0, 2], [], pytest.approx(7.1))
    job.look(training(0, 2), silent(training(1), 10.1), training(2, 2), after=7.1)
    assert job.creates == [CreatePod(1, 2)]


def test_the_time_until_a_loss_was_noticed_is_not_called_productive() -> None:
    """Since the last step that was told of, and one more that was in progress, nobody did anything."""
    job = Job()
    job.look(*map(training, range(3)), after=10)
    before = job.status.ledger["productive"]
    job.look(training(0), silent(training(1)), training(2), after=5)
    assert job.status.ledger["detect"] == pytest.approx(14), "15 s ago it said so, and a step takes one"
    assert job.status.ledger["productive"] == pytest.approx(before + 5 - 14)
    assert sum(job.status.ledger.values()) == pytest.approx(job.now - NOW)


def test_without_checkpoints_the_replacement_is_waited_for() -> None:
    """A member that came later could not be added without beginning at step 0 again."""
    job = Job(checkpoint={})
    job.look(training(0), training(2), pods=[pod(0), pod(2)])
    assert (job.members, job.told) == ([], {"u0": "wait", "u2": "wait"})
    job.look(gone(0), gone(2), pods=[pod(0), pod(2)], after=61)
    assert job.members == [0, 2]


def test_a_killed_worker_gives_a_round_with_the_same_members() -> None:
    """Its agent is there and joins within moments, which is worth waiting for."""
    job = Job()
    failure = Failure(names.REASON_KILLED, "signal 9", 1, rank=1, step=40, signal=9)
    failed = agent(1, "failed", 1, store_port=5001, failure=failure)
    job.look(training(0), failed, training(2))
    assert (job.members, job.status.state) == ([], "Recovering")
    job.look(gone(0), gone(1, failure=failure), gone(2), after=0.2)
    assert job.members == [0, 1, 2]


def test_an_agent_that_does_not_come_back_is_not_waited_for_long() -> None:
    """A few seconds, then the others go on."""
    job = Job()
    failed = agent(
        1, "failed", 1, store_port=5001, failure=Failure(names.REASON_KILLED, "signal 9", 1, rank=1, signal=9)
    )
    assert job.look(training(0), failed, training(2)).look_again == pytest.approx(5.0)
    job.look(gone(0), failed, gone(2), after=5.1)
    assert job.members == [0, 2]


def test_below_the_minimum_the_job_waits_and_says_why() -> None:
    """Once by an event, when it is more than a moment; the condition goes on telling who is missing."""
    job = Job()
    job.look(training(0), pods=[pod(0)])
    assert (job.members, job.told, "BelowMinimum" in job.events) == ([], {"u0": "wait"}, False)
    job.look(
        gone(0), pods=[pod(0), pod(1, phase="Pending", scheduled=False, unschedulable_message="0/1 nodes")], after=6
    )
    assert job.events == ["BelowMinimum"]
    assert condition(job.status, "Recovering") == ("True", "BelowMinimum")
    assert "1 of at least 2 members are ready (member 1: not scheduled: 0/1 nodes" in job.message("Running")
    job.look(gone(0), pods=[pod(0)], after=60)
    assert (job.events, job.status.ledger["waiting"]) == ([], pytest.approx(60)), "since it was clear that nobody comes"


def test_members_that_come_back_together_begin_together() -> None:
    """Those that have just come wait a moment for the ones whose containers already run."""
    job = Job()
    job.look(training(0), pods=[pod(0)])
    fresh = dataclasses.replace(gone(1, number=0), connected_for=0.5)
    job.look(gone(0), fresh, after=60)
    assert job.members == []
    job.look(gone(0), dataclasses.replace(fresh, connected_for=5.5), after=5)
    assert job.members == [0, 1]


def test_pods_that_are_lost_again_and_again_are_replaced_ever_more_slowly() -> None:
    """The survivors do not pause with them."""
    job = Job()
    before = FailureStatus(reason=names.REASON_POD_LOST, message="another", step=40, time=timestamp(job.now - 60))
    job.status = job.status.model_copy(update={"last_failure": before, "streak": 3})
    job.look(training(0), training(2), pods=[pod(0), pod(2)])
    assert (job.members, job.creates, job.decided.look_again) == ([0, 2], [], pytest.approx(4.0))
    job.look(training(0, 2), training(2, 2), pods=[pod(0), pod(2)], after=4)
    assert job.creates == [CreatePod(1, 2)]


# --- another size at a step boundary --------------------------------------------------------------------------------


@pytest.fixture
def short() -> Job:
    """Round 2 trains with members 0 and 2; member 1 is being replaced."""
    job = Job()
    job.look(training(0), training(2), pods=[pod(0), pod(2)])
    job.look(training(0, 2), training(2, 2), pods=[pod(0), pod(1, phase="Pending"), pod(2)])
    assert (job.status.state, condition(job.status, "Resizing")) == ("Running", ("True", "WaitingForMembers"))
    return job


def test_growing_back(short: Job) -> None:
    """When the replacement is ready the round saves and ends, and a new one has all: no restart, no failure."""
    before = (short.status.restarts, short.status.last_failure)
    short.look(training(0, 2), gone(1, number=0), training(2, 2))
    assert short.told == {"u0": "save", "u1": "wait", "u2": "save"}
    assert (short.status.state, short.events) == ("Resizing", ["RoundEnding"])
    assert condition(short.status, "Resizing") == ("True", "Saving")
    short.look(gone(0, 2), gone(1, number=0), training(2, 2, at=41))
    assert (short.members, short.told["u2"]) == ([0, 2], "save")
    short.look(gone(0, 2), gone(1, number=0), gone(2, 2))
    assert (short.members, short.status.round.number, short.events) == ([0, 1, 2], 3, ["RoundClosed", "RoundStarted"])
    assert (short.status.state, short.status.progress.step) == ("Resizing", 41)
    short.look(*(training(i, 3, at=41) for i in range(3)), after=5)
    assert (short.status.state, condition(short.status, "Resizing")) == ("Running", ("False", "AtTarget"))
    assert (short.status.restarts, short.status.last_failure) == before
    assert (short.status.ledger["resize"], sum(short.status.ledger.values())) == (5, short.now - NOW)


def test_growth_waits_for_all_but_not_for_ever(short: Job) -> None:
    """With five wanted, one more that is ready waits for the fifth for half a minute."""
    short.fields["nodes"] = {"min": 2, "max": 4, "desired": 4}
    pods = [*map(pod, range(3)), pod(3, phase="Pending", scheduled=False, unschedulable_message="no room")]
    seen = (training(0, 2), gone(1, number=0), training(2, 2))
    short.look(*seen, pods=pods)
    assert (short.status.round.ending, short.decided.look_again is not None) == (None, True)
    assert "member 3: not scheduled: no room" in short.message("Resizing")
    short.look(*seen, pods=pods, after=GROWTH_PATIENCE)
    assert short.status.round.ending.reason == "Resize"


@pytest.mark.parametrize(
    ("nodes", "left", "deleted"),
    [
        pytest.param(NODES | {"desired": 2}, [0, 1], ["j-2-1"], id="scaled-down"),
        pytest.param({"min": 1, "max": 1, "desired": 1}, [0], ["j-1-1", "j-2-1"], id="maximum-lowered"),
    ],
)
def test_scaling_down(nodes, left, deleted) -> None:
    """The round saves and ends, then those that are too many go."""
    job = Job()
    job.fields["nodes"] = nodes
    job.look(*map(training, range(3)))
    assert (set(job.told.values()), job.decided.actions) == ({"save"}, ())
    job.look(*map(gone, range(3)))
    assert job.members == left
    assert [action.name for action in job.decided.actions if isinstance(action, DeletePod)] == deleted


def test_scaling_up() -> None:
    """The new member's pod is created while the others train."""
    job = Job()
    job.fields["nodes"] = {"min": 2, "max": 4, "desired": 4}
    job.look(*map(training, range(3)))
    assert (job.creates, job.status.round.ending) == ([CreatePod(3, 1)], None)
    job.look(*map(training, range(3)), agent(3), pods=map(pod, range(4)))
    assert job.told == {"u0": "save", "u1": "save", "u2": "save", "u3": "wait"}


def test_a_smaller_job_keeps_the_members_that_have_a_place(short: Job) -> None:
    """Scaling down to those that train, because a node will not come back, disturbs nobody."""
    short.fields["nodes"] = NODES | {"desired": 2}
    pods = [pod(0), pod(1, phase="Pending", scheduled=False, unschedulable_message="no room"), pod(2)]
    short.look(training(0, 2), training(2, 2), pods=pods)
    assert (short.status.nodes, short.status.round.ending) == ("2/2", None)
    assert [action.name for action in short.decided.actions] == ["j-1-1"]
    short.look(training(0, 2), training(2, 2), pods=[pod(0), pod(2)])
    assert short.decided.actions == ()


def test_a_job_that_is_about_to_end_is_left_alone() -> None:
    """Another round would take longer than the rest of it."""
    job = Job()
    job.fields["nodes"] = NODES | {"desired": 2}
    job.look(*(training(i, at=990) for i in range(3)))
    assert (job.status.round.ending, condition(job.status, "Resizing")) == (None, ("True", "NearEnd"))


def test_a_pod_that_is_being_deleted_has_time_to_save() -> None:
    """A node that is drained costs no step: the round saves and ends, and the others go on."""
    job = Job()
    pods = [pod(0), pod(1, deleting=True), pod(2)]
    job.look(*map(training, range(3)), pods=pods)
    assert (job.told, job.members) == ({"u0": "save", "u1": "stop", "u2": "save"}, [0, 1, 2])
    assert "j-1-1 is being deleted" in job.message("Resizing")
    job.look(training(0), agent(1, "stopped", 1), training(2), pods=pods)
    assert job.members == [0, 1, 2], "the others have saved too, and are about to say so"
    job.look(gone(0), agent(1, "stopped", 1), gone(2), pods=pods)
    assert (job.members, job.status.restarts, job.status.state) == ([0, 2], 0, "Resizing")
    assert job.status.progress.step == 40


def test_a_deleted_pod_that_ends_before_it_has_saved_is_lost() -> None:
    """Its grace period is over, or was too short: the newest checkpoint has to do."""
    job = Job()
    job.look(*map(training, range(3)), pods=[pod(0), pod(1, deleting=True), pod(2)])
    job.look(training(0), training(2), pods=[pod(0), pod(2)])
    assert (job.members, job.status.restarts, job.status.progress.step) == ([0, 2], 1, 30)


def test_a_round_that_only_begins_is_not_ended_yet() -> None:
    """Its workers would not know what they are asked."""
    job = Job()
    job.fields["nodes"] = NODES | {"desired": 2}
    loading = [agent(i, "running", 1, progress=Progress(i, 1, "restoring")) for i in range(3)]
    job.look(*loading)
    assert (job.status.round.ending, condition(job.status, "Resizing")) == (None, ("True", "AfterStart"))


def test_without_checkpoints_the_remedy_is_named() -> None:
    """Today's round goes on; the condition says what would make a resize possible."""
    job = Job(checkpoint={})
    job.fields["nodes"] = NODES | {"desired": 2}
    job.look(*map(training, range(3)))
    assert (job.status.round.ending, condition(job.status, "Resizing")) == (None, ("True", "AtNextRound"))
    assert "spec.checkpoint.durable.storage" in job.message("Resizing")


def script(index: int, number=1, checkpoints=None) -> AgentView:
    """An agent that runs a script of the user's own, which tells of no steps."""
    progress = Progress(index, number, checkpoints=checkpoints) if checkpoints else None
    return agent(index, "running", number, store_port=5000 + index, progress=progress)


OWN = {"entrypoint": {"script": "x.py"}, "model": None, "data": None, "training": {}, "checkpoint": {}}


def test_a_script_is_resized_when_the_user_says_so() -> None:
    """Nobody else knows what that costs, so a round that was short from the start stays as it is."""
    job = Job(script, **OWN)
    job.fields["nodes"] = NODES | {"desired": 2}
    job.look(*map(script, range(3)))
    assert job.status.round.ending.reason == "Resize"
    job.look(*map(gone, range(3)))
    assert (job.members, job.status.restarts) == ([0, 1], 0)
    job.fields["nodes"] = NODES
    job.look(script(0, 2), script(1, 2), pods=[pod(0), pod(1)], after=100)
    job.look(script(0, 2), script(1, 2), gone(2))
    assert set(job.told.values()) == {"save", "wait"}


def test_a_script_may_end_any_how_when_it_is_told_to() -> None:
    """One that breaks because its peer obeyed first is no failure, and the one that still saves is not cut short."""
    job = Job(script, **OWN)
    job.fields["nodes"] = NODES | {"desired": 2}
    job.look(*map(script, range(3)))
    broken = agent(1, "failed", 1, failure=Failure(names.REASON_USER_ERROR, "connection closed by peer", 1, rank=1))
    job.look(script(0), broken, gone(2))
    assert (job.told, job.status.restarts) == ({"u0": "save", "u1": "save", "u2": "save"}, 0)
    job.look(gone(0), broken, gone(2))
    assert (job.status.round, job.status.restarts, job.status.last_failure) == (None, 0, None)
    job.look(gone(0), gone(1, failure=broken.report.failure), gone(2))
    assert job.members == [0, 1]


def test_a_script_that_reports_checkpoints_is_treated_like_our_trainer() -> None:
    """It has shown that it goes on from them."""
    job = Job(script, **OWN)
    job.look(*(script(i, checkpoints=Checkpoints(step=7)) for i in range(3)))
    job.look(script(0), script(2), pods=[pod(0), pod(2)])
    assert job.members == [0, 2]
    job.look(script(0, 2), gone(1, number=0), script(2, 2), after=9)
    assert job.told == {"u0": "save", "u1": "wait", "u2": "save"}


# --- while the round ends -------------------------------------------------------------------------------------------


def scaled_down() -> Job:
    """A job whose three members were told to save because two are wanted."""
    job = Job()
    job.fields["nodes"] = NODES | {"desired": 2}
    job.look(*map(training, range(3)))
    return job


def test_saving_that_fails_is_told_and_training_goes_on() -> None:
    """With the storage's own words, in time and over time, until it works."""
    job = scaled_down()
    failing = [training(i, checkpoints=Checkpoints(step=30, **FULL)) for i in range(3)]
    job.look(*failing)
    assert condition(job.status, "Resizing") == ("True", names.REASON_STORAGE_FULL)
    assert "no space left" in job.message("Resizing")
    job.look(*failing, after=SAVE_PATIENCE)
    assert (job.members, set(job.told.values())) == ([0, 1, 2], {"save"})
    job.look(*map(gone, range(3)))
    assert job.members == [0, 1]


def test_members_that_do_not_leave_are_named_in_time() -> None:
    """Without any word from the trainer all that can be said is that it takes too long."""
    job = scaled_down()
    assert job.decided.look_again == pytest.approx(SAVE_PATIENCE)
    job.look(*map(training, range(3)), after=SAVE_PATIENCE)
    assert condition(job.status, "Resizing") == ("True", "SaveOverdue")
    assert "only 0 of 3 members" in job.message("Resizing")


def test_a_loss_before_anyone_has_saved_is_a_loss() -> None:
    """The others could wait for ever for the lost one's share of the state."""
    job = scaled_down()
    job.look(training(0), training(1), pods=[pod(0), pod(1)])
    assert (job.members, job.status.restarts, "MemberLost" in job.events) == ([0, 1], 1, True)


def test_a_loss_after_the_first_has_left_costs_nothing() -> None:
    """Nobody leaves before the state of all is saved."""
    job = scaled_down()
    job.look(gone(0), training(1), pods=[pod(0), pod(1)])
    assert (job.members, job.status.restarts, job.events) == ([0, 1], 0, ["RoundClosed", "RoundStarted"])


def test_the_end_of_training_comes_before_the_end_of_the_round() -> None:
    """A job that finishes while it is told to save is complete."""
    job = scaled_down()
    job.look(*(agent(i, "succeeded", 1) for i in range(3)))
    assert job.status.state == "Complete"


# --- suspended with its state saved ---------------------------------------------------------------------------------


def test_suspending_saves_first_and_resuming_goes_on() -> None:
    """Pods are deleted when the state is in storage; the step is shown all the while."""
    job = Job()
    job.fields["suspend"] = True
    job.look(*map(training, range(3)))
    assert (set(job.told.values()), job.decided.actions, job.status.state) == ({"save"}, (), "Running")
    assert condition(job.status, "Suspended") == ("False", "Saving")
    job.look(*map(gone, range(3)))
    assert job.status.state == "Suspended"
    assert {type(action) for action in job.decided.actions} == {DeletePod}
    assert job.status.progress.step == 40
    job.look(pods=[])
    job.fields["suspend"] = False
    job.look(pods=[])
    assert ([action.incarnation for action in job.creates], job.status.state) == ([2, 2, 2], "Pending")


def test_suspending_saves_also_what_the_status_does_not_know_of_yet() -> None:
    """It is up to a second old: that its step is saved says nothing about the steps since then."""
    job = Job(lambda index: training(index, at=30))
    job.fields["suspend"] = True
    later = [training(index, at=33) for index in range(3)]
    job.look(*later)
    assert (set(job.told.values()), job.status.round is not None) == ({"save"}, True)


@pytest.mark.parametrize(
    ("asked", "then", "state"),
    [
        pytest.param({"nodes": NODES | {"desired": 2}}, lambda i: agent(i, "succeeded", 1), "Complete", id="done"),
        pytest.param({"suspend": True}, gone, "Suspended", id="suspended"),
    ],
)
def test_a_job_that_is_over_or_suspended_is_not_resizing(asked, then, state) -> None:
    """Whatever its last round was to end for: who waits for the condition would wait for ever."""
    job = Job()
    job.fields |= asked
    job.look(*map(training, range(3)))
    assert job.status.round.ending
    job.look(*map(then, range(3)))
    assert (job.status.state, condition(job.status, "Resizing")[0]) == (state, "False")


def test_a_suspension_that_cannot_be_saved_waits_and_says_why() -> None:
    """Nothing is thrown away unasked; with the user's leave it is."""
    job = Job()
    job.fields["suspend"] = True
    job.look(*map(training, range(3)))
    job.look(*(training(i, checkpoints=Checkpoints(step=30, **FULL)) for i in range(3)))
    assert condition(job.status, "Suspended") == ("False", names.REASON_STORAGE_FULL)
    assert (job.status.state, job.decided.actions) == ("Running", ())


def test_a_suspension_that_is_taken_back_leads_to_a_new_round() -> None:
    """Workers that were asked to leave will do so; the job is not suspended then."""
    job = Job()
    job.fields["suspend"] = True
    job.look(*map(training, range(3)))
    job.fields["suspend"] = False
    job.look(*map(training, range(3)))
    assert job.status.round.ending.reason == "Resize"
    job.look(*map(gone, range(3)))
    assert (job.members, job.status.round.number) == ([0, 1, 2], 2)


# --- what is said of checkpoints ------------------------------------------------------------------------------------


def test_durable_and_protected_follow_what_the_members_say() -> None:
    """Unknown before the first checkpoint, True with it, False with the storage's words, and True again."""
    job = Job()
    job.status = job.status.model_copy(update={"checkpoint": {}})
    job.look(*(training(i, checkpoints=Checkpoints()) for i in range(3)))
    assert (condition(job.status, "Durable"), condition(job.status, "Protected")) == (
        ("Unknown", "NotYetSaved"),
        ("False", "NoCheckpointYet"),
    )
    job.look(*(training(i, checkpoints=Checkpoints(step=20, size=9)) for i in range(3)))
    assert (condition(job.status, "Durable"), job.events) == (("True", "Saved"), ["CheckpointSaved"])
    job.look(*(training(i, checkpoints=Checkpoints(step=30, size=9)) for i in range(3)))
    assert (job.status.checkpoint.step, job.events) == (30, [])
    job.look(*(training(i, checkpoints=Checkpoints(step=30, **FULL)) for i in range(3)))
    assert (condition(job.status, "Durable"), job.events) == (
        ("False", names.REASON_STORAGE_FULL),
        ["CheckpointFailed"],
    )
    assert condition(job.status, "Protected")[0] == "True", "from the older one"
    job.look(*(training(i, checkpoints=Checkpoints(step=50)) for i in range(3)))
    assert (condition(job.status, "Durable"), job.events) == (("True", "Saved"), ["CheckpointSaved"])


def test_no_storage_is_said() -> None:
    """With what would change that."""
    job = Job(checkpoint={})
    assert condition(job.status, "Durable") == ("False", "NoStorage")
    assert "spec.checkpoint.durable.storage" in job.message("Durable")


def test_a_restore_is_told_once_with_what_it_cost() -> None:
    """Damaged checkpoints by name; the step that is shown is the one that training goes on at, never 0."""
    job = Job()
    job.look(training(0), training(2), pods=[pod(0), pod(2)])
    assert job.status.progress.step == 30
    loading = [agent(i, "running", 2, progress=Progress(i, 2, "loading", checkpoints=Checkpoints())) for i in (0, 2)]
    job.look(*loading, pods=[pod(0), pod(2)])
    assert (job.status.progress.step, job.status.checkpoint.step, job.events) == (30, 30, [])
    said = Checkpoints(
        step=20, restored_step=20, restored_from="pvc://c/j/20", skipped=("step-30: chunk 2 of shard 1",)
    )
    for events in (["CheckpointDamaged", "Restored", "Recovered"], []):
        job.look(*(training(i, 2, at=25, checkpoints=said) for i in (0, 2)), pods=[pod(0), pod(2)])
        assert job.events == events
        texts = " ".join(event.message for event in job.decided.events)
        assert not events or (
            "step-30: chunk 2" in texts and "step 20 from pvc://c/j/20; 20 steps are done again" in texts
        )
    assert (job.status.checkpoint.restored_step, job.status.progress.step) == (20, 25)
    job.look(*(training(i, 2, at=45, checkpoints=said) for i in (0, 2)), pods=[pod(0), pod(2)])
    assert (job.status.ledger["recompute"], sum(job.status.ledger.values())) == (2, job.now - NOW)
