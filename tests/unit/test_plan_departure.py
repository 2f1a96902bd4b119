"""Members that are made to go, by their nodes or by others: they leave at a step boundary, and nothing is lost."""

from __future__ import annotations

import dataclasses

import pytest

from llmtrain_operator.contract import names
from llmtrain_operator.contract.wire import Failure
from llmtrain_operator.state import CreatePod, DeletePod
from tests.support.elastic import Job, gone, held, training
from tests.support.planner import agent, condition, pod

TAINT = "karpenter.sh/disrupted:NoSchedule"
SPREAD = [pod(index, node=f"n{index}") for index in range(3)]


def term(view):
    """The same agent, told to end by the kubelet of a node that shuts down."""
    return dataclasses.replace(view, report=dataclasses.replace(view.report, leaving="SIGTERM"))


def text(job: Job, reason: str) -> str:
    return next(event.message for event in job.decided.events if event.reason == reason)


# --- notices of nodes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpoint", [None, {}], ids=["with-storage", "from-memory"])
def test_a_member_leaves_a_node_that_is_about_to_go(checkpoint) -> None:
    """Saved, at a step boundary; then its pod is deleted, another made, and the others go on. No loss, no restart."""
    job = Job(held, **({} if checkpoint is None else {"checkpoint": checkpoint}))
    job.look(*map(held, range(3)), pods=SPREAD, leaving={"n1": TAINT})
    assert (set(job.told.values()), job.decided.actions) == ({"save"}, ())
    assert job.events == ["NodeLeaving", "RoundEnding"]
    assert text(job, "NodeLeaving") == f"node n1 is leaving ({TAINT}), and with it j-1-1; replaced elsewhere once " \
        "their state is saved"  # fmt: skip
    assert f"j-1-1: its node n1 is leaving ({TAINT})" in job.message("Resizing")
    job.look(*(held(i, state="joining") for i in range(3)), pods=SPREAD, leaving={"n1": TAINT})
    assert (job.members, job.events) == ([0, 2], ["RoundClosed", "RoundStarted"])
    why = f"its node n1 is leaving ({TAINT}); a new pod takes its place"
    assert job.decided.actions == (DeletePod("j-1-1", "u1", why), CreatePod(1, 2))
    assert (job.status.restarts, job.status.incidents, job.status.last_failure) == (0, (), None)


def test_a_replacement_that_lands_there_again_stays() -> None:
    """The taint may be tolerated, or only a preference: one notice moves a pod once, whatever comes of it."""
    soft = {"n1": "example.com/going:PreferNoSchedule"}
    job = Job(held)
    job.look(*map(held, range(3)), pods=SPREAD, leaving=soft)
    assert "a replacement may come back to this node, and stays there then" in text(job, "NodeLeaving")
    job.look(*(held(i, state="joining") for i in range(3)), pods=SPREAD, leaving=soft)
    job.look(held(0, 2), held(2, 2), pods=[SPREAD[0], SPREAD[2]], leaving=soft)
    back = pod(1, uid="u1b", incarnation=2, name="j-1-2", node="n1")
    here = [SPREAD[0], back, SPREAD[2]]
    fresh = agent(1, uid="u1b", incarnation=2, pod="j-1-2")
    fresh = dataclasses.replace(fresh, uid="u1b")
    job.look(held(0, 2), fresh, held(2, 2), pods=here, leaving=soft)
    job.look(held(0, 2, state="joining"), fresh, held(2, 2, state="joining"), pods=here, leaving=soft)
    assert (job.members, job.status.round.number) == ([0, 1, 2], 3)
    trains = training(1, 3, uid="u1b", incarnation=2, pod="j-1-2")
    trains = dataclasses.replace(trains, uid="u1b")
    job.look(held(0, 3), trains, held(2, 3), pods=here, leaving=soft)
    assert (job.status.round.ending, job.decided.actions, job.events) == (None, (), [])


def test_a_notice_that_is_taken_back_is_forgotten() -> None:
    """The next one counts again, for whoever is there then."""
    job = Job(held, nodes={"min": 3, "max": 3, "desired": 3})
    elsewhere = [pod(i, node="n9") for i in range(3)]
    job.look(*map(held, range(3)), pods=elsewhere, leaving={"n1": TAINT})
    assert (job.status.leaving_nodes, job.events) == ((), []), "none of its business"
    job.look(*map(held, range(3)), pods=SPREAD, leaving={"n1": TAINT})
    assert [node.pods for node in job.status.leaving_nodes] == [("u1",)]
    job.look(*map(held, range(3)), pods=SPREAD)
    assert job.status.leaving_nodes == ()
    job.look(*(held(i, state="joining") for i in range(3)), pods=SPREAD)
    assert job.members == [0, 1, 2]
    assert job.decided.actions == (), "the node stays, and so does its pod"


def test_members_that_hold_what_nobody_else_has_stay() -> None:
    """Without storage and copies there is nothing to go on from: no step is thrown away before it must be."""
    alone = dict.fromkeys(range(3), ())
    job = Job(held, checkpoint={})
    job.look(*(held(i, ring=alone) for i in range(3)), pods=SPREAD)
    job.look(*(held(i, ring=alone) for i in range(3)), pods=SPREAD, leaving={"n1": TAINT})
    assert (set(job.told.values()), job.events) == ({"run"}, ["NodeLeaving"])
    assert "what they have done is nowhere else, so they stay" in text(job, "NodeLeaving")
    assert job.decided.events[0].type == "Warning"


def test_of_several_nodes_only_those_go_whose_memory_the_others_hold() -> None:
    """One after the other, each round making new copies, and none of them twice."""
    job = Job(held, checkpoint={}, nodes={"min": 1, "max": 3, "desired": 3})
    both = {"n1": TAINT, "n2": TAINT}
    job.look(*map(held, range(3)), pods=SPREAD, leaving=both)
    assert set(job.told.values()) == {"save"}
    job.look(*(held(i, state="joining") for i in range(3)), pods=SPREAD, leaving=both)
    assert job.members == [0, 2], "member 2 has the only copy of what member 1 had"
    assert [action.name for action in job.decided.actions if isinstance(action, DeletePod)] == ["j-1-1"]
    pair = {0: (1,), 2: (0,)}
    job.look(held(0, 2, ring=pair), held(2, 2, ring=pair), pods=[SPREAD[0], SPREAD[2]], leaving=both)
    assert set(job.told.values()) == {"save"}
    job.look(*(held(i, 2, ring=pair, state="joining") for i in (0, 2)), pods=[SPREAD[0], SPREAD[2]], leaving=both)
    assert (job.members, job.status.restarts) == ([0], 0)


def test_all_nodes_at_once_leave_what_they_did_in_storage() -> None:
    """Everybody saves and goes; their replacements begin there."""
    job = Job(held)
    everywhere = {f"n{i}": TAINT for i in range(3)}
    job.look(*map(held, range(3)), pods=SPREAD, leaving=everywhere)
    assert set(job.told.values()) == {"save"}
    left = [gone(i) for i in range(3)]
    job.look(*left, pods=SPREAD, leaving=everywhere)
    assert (job.members, job.status.restarts, job.status.progress.step) == ([], 0, 40)
    assert job.creates == [CreatePod(0, 2), CreatePod(1, 2), CreatePod(2, 2)]


def test_below_the_minimum_the_pod_makes_room_for_its_replacement() -> None:
    """Its memory is with others, and a quota may have no room for both."""
    job = Job(held, checkpoint={}, nodes={"min": 3, "max": 3, "desired": 3})
    job.look(*map(held, range(3)), pods=SPREAD, leaving={"n1": TAINT})
    left = [held(i, state="joining") for i in range(3)]
    job.look(*left, pods=SPREAD, leaving={"n1": TAINT})
    assert job.members == []
    assert [type(action) for action in job.decided.actions] == [DeletePod, CreatePod]
    back = pod(1, uid="u1b", incarnation=2, name="j-1-2", node="n9")
    fresh = dataclasses.replace(agent(1, uid="u1b", incarnation=2, pod="j-1-2"), uid="u1b")
    job.look(left[0], fresh, left[2], pods=[SPREAD[0], back, SPREAD[2]], leaving={"n1": TAINT})
    assert [member.pod for member in job.status.round.members] == ["j-0-1", "j-1-2", "j-2-1"]
    assert (job.status.restarts, job.status.progress.step) == (0, 40)


def test_a_round_that_only_begins_is_left_alone() -> None:
    """It is asked when its workers can hear it."""
    job = Job(held)
    loading = [agent(i, "running", 1, progress=None) for i in range(3)]
    job.status = job.status.model_copy(update={"progress": None})
    job.look(*loading, pods=SPREAD, leaving={"n1": TAINT})
    assert (job.status.round.ending, job.events) == (None, ["NodeLeaving"])
    job.look(*map(held, range(3)), pods=SPREAD, leaving={"n1": TAINT})
    assert job.events == ["RoundEnding"]


# --- told to end by someone else ------------------------------------------------------------------------------------


def test_a_member_that_is_told_to_end_has_time_to_save() -> None:
    """A node that shuts down ends containers without deleting pods: the agent's word is all there is."""
    job = Job()
    job.look(training(0), term(training(1)), training(2))
    assert (set(job.told.values()), job.events) == ({"save"}, ["RoundEnding"])
    assert "j-1-1 was told to end" in job.message("Resizing")
    job.look(gone(0), term(agent(1, "stopped", 1)), gone(2))
    assert (job.members, job.status.restarts, job.status.last_failure) == ([0, 2], 0, None)
    ended = pod(1, phase="Failed", reason="Terminated", message="imminent node shutdown", exit_code=143)
    job.look(training(0, 2), term(agent(1, "stopped", 1)), training(2, 2), pods=[pod(0), ended, pod(2)])
    assert (job.events, job.status.pod_failures, job.status.last_failure) == ([], 0, None)
    assert job.creates == [CreatePod(1, 2)]


@pytest.mark.parametrize(
    "seen",
    [
        pytest.param((gone(0), term(training(1)), gone(2)), id="the-others-first"),
        pytest.param((training(0), term(agent(1, "stopped", 1)), training(2)), id="itself-first"),
        pytest.param((gone(0), term(agent(1, "stopped", 1)), gone(2)), id="all-at-once"),
    ],
)
def test_those_who_leave_sooner_than_they_could_be_told_to_are_no_loss(seen) -> None:
    """Workers agree among themselves: the round may be over before the operator has heard that it ends."""
    job = Job()
    views = [dataclasses.replace(v, report=dataclasses.replace(v.report, progress=training(0).report.progress))
             for v in seen]  # fmt: skip
    job.look(*views)
    job.look(gone(0), term(agent(1, "stopped", 1)), gone(2))
    assert (job.members, job.status.restarts, job.status.incidents) == ([0, 2], 0, ())


def test_a_failure_in_the_same_round_is_still_judged() -> None:
    """That someone was told to end meanwhile explains nothing."""
    job = Job()
    failure = Failure(names.REASON_KILLED, "signal 9", 1, rank=0, step=40, signal=9)
    job.look(agent(0, "failed", 1, store_port=5000, failure=failure), term(training(1)), training(2))
    assert (job.status.restarts, job.status.last_failure.reason) == (1, names.REASON_KILLED)


def test_without_anything_to_go_on_from_it_is_a_loss() -> None:
    """Its memory ends with it, and the others begin again: there is nothing to wait for."""
    job = Job(checkpoint={})
    job.look(training(0), term(training(1)), training(2))
    assert (job.events[0], job.status.restarts) == ("MemberLost", 1)
    assert "pod j-1-1 was told to end (SIGTERM)" in job.status.last_failure.message


def test_who_is_told_to_end_is_in_no_later_round() -> None:
    """However ready it says it is."""
    job = Job()
    job.look(gone(0), term(gone(1)), gone(2))
    assert job.members == [0, 2]
    assert condition(job.status, "Scheduled")[0] == "True"


def test_a_newcomer_that_is_told_to_end_counts_against_nobody() -> None:
    """Its node shut down before it could join; the next one is made at once."""
    job = Job()
    job.look(training(0), training(2), pods=[pod(0), pod(2)])
    late = pod(1, uid="u1b", incarnation=2, name="j-1-2", phase="Failed", reason="Error", exit_code=143)
    fresh = dataclasses.replace(term(agent(1, "stopped", uid="u1b", incarnation=2, pod="j-1-2")), uid="u1b")
    job.look(training(0, 2), fresh, training(2, 2), pods=[pod(0), late, pod(2)])
    assert (job.status.pod_failures, job.status.create_after, job.creates) == (0, None, [CreatePod(1, 3)])


def test_who_is_done_is_not_told_to_save() -> None:
    """A member that has finished may be told to end while the others finish: that ends no round."""
    job = Job()
    done = agent(1, "succeeded", 1, progress=training(1).report.progress)
    job.look(training(0), term(done), training(2))
    assert (job.status.round.ending, set(job.told.values())) == (None, {"run"})


# --- all at once ----------------------------------------------------------------------------------------------------


def test_a_queue_that_takes_all_pods_away_costs_no_step() -> None:
    """Kueue preempts the pods of a group together: their workers save within the grace period, and all go."""
    job = Job()
    away = [pod(index, deleting=True) for index in range(3)]
    job.look(*map(training, range(3)), pods=away)
    assert (set(job.told.values()), job.events) == ({"stop"}, ["RoundEnding"])
    saved = [term(agent(i, "stopped", 1, progress=training(i, at=41).report.progress)) for i in range(3)]
    job.look(*saved, pods=away)
    assert (job.members, job.status.restarts, job.status.incidents) == ([], 0, ())
    assert (job.status.state, job.status.progress.step) == ("Resizing", 41)
    assert job.creates == [CreatePod(0, 2), CreatePod(1, 2), CreatePod(2, 2)]


def test_a_queue_that_suspends_the_job_has_it_saved_first() -> None:
    """As a user does; who is told to end meanwhile does not make it another thing."""
    job = Job()
    job.fields["suspend"] = True
    job.look(training(0), term(training(1)), training(2))
    assert (set(job.told.values()), job.status.round.ending.reason) == ({"save"}, "Suspend")
    job.look(gone(0), term(agent(1, "stopped", 1)), gone(2))
    assert (job.status.state, job.status.restarts) == ("Suspended", 0)
