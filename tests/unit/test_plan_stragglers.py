"""What a persistently slow member means for a job: it is told, and replaced where that does no harm."""

from __future__ import annotations

import dataclasses

import pytest

from llmtrain_operator.conditions import find
from llmtrain_operator.contract.wire import Checkpoints, Pace
from llmtrain_operator.plan.stragglers import PAUSE
from llmtrain_operator.state import DeletePod
from tests.support.elastic import NODES, Job, gone, silent, training
from tests.support.planner import agent, pod

REPLACE = {"recovery": {"straggler": "replace"}}
OWN = (0.5, 0.5, 0.9)
"""Seconds that each rank takes for its own part of a step of 1 s."""


def paced(job, own=OWN, members=(0, 1, 2), number=1, at=40, saved=None):
    """Agents of the members whose workers report these times."""
    said = saved or Checkpoints(step=30)
    each = zip(members, own, strict=True)
    return [
        training(index, number, at, checkpoints=said, paces=(Pace(rank, seconds, 1.0),))
        for rank, (index, seconds) in enumerate(each)
    ]


def train(job, times=40, **what):
    """A second and a step at a time; the events of all of it."""
    pods = [pod(index, node=f"n{index}") for index in range(3)]
    events = []
    for _ in range(times):
        job.at = getattr(job, "at", 40) + 1
        job.look(*paced(job, at=job.at, **what), pods=pods)
        events += job.decided.events
    return events


def deleted(job):
    return [action.uid for action in job.decided.actions if isinstance(action, DeletePod)]


def test_a_slow_member_is_told_once_with_its_figures():
    """By event, condition and status; nothing is done to it, and nothing more is said while it lasts."""
    job = Job()
    (event,) = train(job)
    assert (event.type, event.reason) == ("Warning", "StragglerFound")
    assert event.message == (
        "member 2 (rank 2, node n2): 0.9 s of a step of 1 s are its own, 1.8 times the 0.5 s of its peers"
    )
    assert find(job.status.conditions, "Straggling").status == "True"
    assert job.message("Straggling") == "member 2 (rank 2, node n2): persistently slower than the others, who wait"
    assert (job.status.stragglers[0].member, job.status.stragglers[0].factor) == (2, 1.8)
    transition = find(job.status.conditions, "Straggling")
    assert not train(job, own=(0.5, 0.5, 0.95))
    assert find(job.status.conditions, "Straggling") == transition
    assert not deleted(job)


def test_one_that_keeps_up_again_is_told_too():
    """And the status names it no longer."""
    job = Job()
    train(job)
    assert [event.reason for event in train(job, own=(0.5, 0.5, 0.5))] == ["StragglerCleared"]
    assert (job.reason("Straggling"), job.status.stragglers) == ("KeepingUp", ())


def test_members_that_do_not_tell_are_not_judged():
    """Agents of an older version, scripts of one's own."""
    job = Job()
    assert not train(job, own=(0.5,), members=(0,))
    job = Job()
    job.look(*map(training, range(3)))
    assert find(job.status.conditions, "Straggling") is None


def test_what_was_said_of_an_earlier_round_does_not_count():
    """Another round, other ranks: the watch begins anew."""
    job = Job()
    train(job)
    late = dataclasses.replace(paced(job)[2].report, round=0)
    job.look(*paced(job)[:2], dataclasses.replace(paced(job)[2], report=late))
    assert job.status.stragglers[0].found
    job.look(training(0), training(1), silent(training(2)))
    assert (job.members, job.status.stragglers) == ([0, 1], ())
    job.look(training(0, 2), training(1, 2))
    assert job.reason("Straggling") == "KeepingUp"


def test_while_a_job_does_other_things_nobody_is_judged():
    """What is known of the pace is old then."""
    job = Job()
    train(job, times=20)
    evaluating = [
        dataclasses.replace(
            view,
            report=dataclasses.replace(
                view.report, progress=dataclasses.replace(view.report.progress, phase="evaluating")
            ),
        )
        for view in paced(job, at=job.at)
    ]
    for _ in range(60):
        job.look(*evaluating, pods=[pod(index) for index in range(3)])
        assert not job.events
    assert not job.status.stragglers[0].found


def test_a_slow_member_leaves_like_one_that_is_drained_and_another_takes_its_place():
    """It saves first, the others go on, no step is lost; then the plan is quiet."""
    job = Job(**REPLACE)
    events = train(job, times=31)
    assert [event.reason for event in events] == ["StragglerFound", "StragglerReplaced", "NodeAvoided"]
    assert (deleted(job), job.status.replaced.uid, job.status.replaced.node) == (["u2"], "u2", "n2")
    train(job, times=1)
    assert (deleted(job), job.events) == (["u2"], []), "tried again, as long as the pod is there"
    pods = [pod(0, node="n0"), pod(1, node="n1"), pod(2, node="n2", deleting=True)]
    job.look(*paced(job, at=job.at), pods=pods)
    assert (job.told, deleted(job)) == ({"u0": "save", "u1": "save", "u2": "stop"}, [])
    job.look(gone(0), gone(1), agent(2, "stopped", 1), pods=pods)
    assert (job.members, job.status.restarts, job.status.stragglers) == ([0, 1], 0, ())
    assert job.status.progress.step == job.at
    assert [create.index for create in job.creates] == [2]
    replacement = [*pods[:2], pod(2, name="j-2-2", uid="u2b", incarnation=2, node="n2")]
    job.look(training(0, 2), training(1, 2), pods=replacement)
    job.look(training(0, 2), training(1, 2), pods=replacement)
    assert (job.decided.actions, job.decided.events) == ((), ())


def with_slow_member(job, **what):
    """The job once it has found its slow member."""
    events = train(job, **what)
    assert "StragglerFound" in [event.reason for event in events]
    assert not deleted(job)
    return job.message("Straggling")


@pytest.mark.parametrize(
    ("fields", "what", "why"),
    [
        pytest.param({"nodes": NODES | {"min": 3}}, {}, "with nodes.min members the others", id="all are needed"),
        pytest.param({"checkpoint": {}}, {}, "there is nothing yet that training", id="no storage, no memory"),
        pytest.param(
            {},
            {"saved": Checkpoints(step=30, error="disk full")},
            "there is nothing yet that training",
            id="saving fails",
        ),
    ],
)
def test_a_replacement_that_would_do_harm_is_left_undone_and_the_reason_told(fields, what, why):
    """It could cost more than the slow member does."""
    assert f"; not replaced: {why}" in with_slow_member(Job(**REPLACE, **fields), **what)


def test_nobody_is_replaced_while_others_are_missing():
    """One at a time: whoever is still to come may be as slow."""
    job = Job(**REPLACE)
    job.fields["nodes"] = NODES | {"max": 4, "desired": 4}
    assert "; not replaced: others are missing already" in with_slow_member(job)


def test_a_job_that_is_about_to_end_is_left_alone():
    """The others would wait longer for a new round than for the slow one."""
    job = Job(**REPLACE)
    job.at = 800
    assert "; not replaced: the job is about to end" in with_slow_member(job)


def test_replacements_are_spaced_out_and_the_same_node_is_not_tried_twice():
    """The next slow member waits its turn; the place of the last one has had its chance."""
    job = Job(**REPLACE)
    train(job, times=31)
    assert deleted(job) == ["u2"]
    job.status = job.status.model_copy(
        update={"replaced": job.status.replaced.model_copy(update={"uid": "gone"}), "stragglers": ()}
    )
    assert "its predecessor was slow on this node too" in with_slow_member(job)
    train(job, own=(0.5, 0.5, 0.5))
    assert "another was less than 10 minutes ago" in with_slow_member(job, own=(0.5, 0.9, 0.5))
    assert job.decided.look_again <= PAUSE
    job.now += PAUSE
    train(job, times=1, own=(0.5, 0.9, 0.5))
    assert deleted(job) == ["u1"]
