"""How many members evictions have to leave alone."""

from __future__ import annotations

import pytest

from llmtrain_operator import manifests
from llmtrain_operator.plan.budget import PATIENCE, staying
from llmtrain_operator.state import Observed
from tests.support.elastic import RING, STORAGE, Job, gone, held, training
from tests.support.planner import JOB, agent, pod, spec

THREE = list(map(pod, range(3)))
AWAY = [pod(0), pod(1, deleting=True), pod(2)]
UNREADY = pod(3, ready=False, phase="Pending")


def kept(job: Job, *agents, pods, after=0.0) -> int:
    seen = Observed(tuple(pods), {view.uid: view for view in agents}, children_applied=True)
    return staying(JOB, spec(**job.fields), job.status, seen, job.now + after)


@pytest.mark.parametrize(
    ("pods", "number"),
    [
        pytest.param(THREE, 2, id="one-may-go"),
        pytest.param([*THREE, UNREADY], 2, id="a-newcomer-that-only-starts"),
        pytest.param([*THREE, pod(3)], 3, id="a-newcomer-makes-nobody-dispensable"),
        pytest.param(AWAY, 2, id="another-is-just-leaving"),
        pytest.param([pod(0), pod(2)], 2, id="another-is-gone"),
        pytest.param([pod(0), pod(1, ready=False), pod(2)], 1, id="unready-ones-are-not-counted"),
    ],
)
def test_members_of_a_round_go_one_at_a_time(pods, number) -> None:
    """Counted from the pods that are ready; nobody while another is on its way out."""
    assert kept(Job(), *map(training, range(3)), pods=pods) == number


def test_who_is_wanted_does_not_matter() -> None:
    """A job that has found fewer nodes than it wants can be drained like any other."""
    job = Job()
    job.fields["nodes"] = {"min": 1, "max": 9, "desired": 9}
    assert kept(job, *map(training, range(3)), pods=THREE) == 2


def test_a_single_member_may_always_go() -> None:
    """It saves first, within its grace period."""
    job = Job(nodes={"min": 1, "max": 3, "desired": 3})
    job.look(gone(0), pods=[pod(0)])
    job.look(training(0, 2), pods=[pod(0)])
    assert (job.members, kept(job, training(0, 2), pods=[pod(0)])) == ([0], 0)


@pytest.fixture
def waiting() -> Job:
    """Two of three members, of whom each has what nobody else has, wait for the third."""
    job = Job(held, checkpoint={}, nodes={"min": 3, "max": 3, "desired": 3})
    job.look(held(0, state="joining"), held(2, state="joining"), pods=[pod(0), pod(2)])
    assert job.members == []
    return job


def test_what_only_those_who_wait_have_is_kept_for_a_while(waiting) -> None:
    """Then the drain has waited longer than the steps are worth."""
    there = held(0, state="joining"), held(2, state="joining")
    both = [pod(0), pod(2)]
    assert kept(waiting, *there, pods=both) == 2
    assert kept(waiting, *there, pods=both, after=PATIENCE) == 0


def test_of_those_who_hold_everything_twice_one_may_go() -> None:
    """The other has it too."""
    twice = {index: tuple(other for other in range(3) if other != index) for index in RING}
    job = Job(lambda i: held(i, ring=twice), checkpoint={}, nodes={"min": 3, "max": 3, "desired": 3})
    there = held(0, state="joining", ring=twice), held(2, state="joining", ring=twice)
    job.look(*there, pods=[pod(0), pod(2)])
    assert kept(job, *there, pods=[pod(0), pod(2)]) == 1


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"rounds": 0, "round": None, "flash": None}, id="has-never-trained"),
        pytest.param({"completion_time": "2023-11-14T22:13:20Z"}, id="is-over"),
    ],
)
def test_where_nothing_is_at_stake_everybody_may_go(changes) -> None:
    """Whoever starts can start elsewhere."""
    job = Job()
    job.status = job.status.model_copy(update=changes)
    assert kept(job, *map(agent, range(3)), pods=THREE) == 0


def test_what_is_in_storage_need_not_be_kept_in_memory() -> None:
    """The job goes on from there, with whomever."""
    job = Job(held, checkpoint=STORAGE, nodes={"min": 3, "max": 3, "desired": 3})
    job.status = job.status.model_copy(update={"round": None, "waiting_since": "2023-11-14T22:13:20Z"})
    saved = job.status.checkpoint.model_copy(update={"step": 40})
    behind = kept(job, *map(held, range(3)), pods=THREE)
    job.status = job.status.model_copy(update={"checkpoint": saved})
    assert (behind, kept(job, *map(held, range(3)), pods=THREE)) == (2, 0)


def test_the_budget_is_a_number_and_spares_nobody_who_does_not_work() -> None:
    """A share of the wanted size would block drains where that many cannot be had."""
    settings = manifests.Settings("t", "o", "wss://c", "pem")
    children = manifests.children(JOB, spec(), settings, staying=2)
    [budget] = [child["spec"] for child in children if child["kind"] == "PodDisruptionBudget"]
    assert (budget["minAvailable"], budget["unhealthyPodEvictionPolicy"]) == (2, "AlwaysAllow")
    assert "maxUnavailable" not in budget
