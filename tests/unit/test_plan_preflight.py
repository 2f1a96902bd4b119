"""New members are measured before they may join, and replaced if their nodes fall short."""

from __future__ import annotations

import dataclasses

import pytest

from llmtrain_operator.api import JobStatus
from llmtrain_operator.conditions import find
from llmtrain_operator.contract.wire import Preflight
from llmtrain_operator.plan import plan
from llmtrain_operator.plan.preflight import NEIGHBOUR_PATIENCE
from llmtrain_operator.state import AgentView, CreatePod, DeletePod, Observed
from tests.support.elastic import training
from tests.support.planner import JOB, NOW, agent, condition, pod, spec

FAST = {"matmul": 1.0, "memory": 12.0, "network": 900.0, "disk": 400.0}
SLOW = FAST | {"memory": 3.0}


def measured(index: int, attempt=1, figures=FAST, *, view=agent, **fields) -> AgentView:
    """An agent that has measured its node."""
    error = fields.pop("error", "")
    found = Preflight(attempt, **figures, error=error, port=7000 + index, key=f"key {index}")
    return view(index, preflight=found, **fields)


def fresh(index: int, **fields) -> AgentView:
    """An agent that has just come."""
    return measured(index, 0, {}, **fields)


def pods(count: int, **fields):
    """Each on a node of its own."""
    return [pod(index, node=f"n{index}", **fields) for index in range(count)]


class Job:
    """A job with pre-flight checks; `look` makes one pass."""

    def __init__(self, members=3, minimum=2, **recovery) -> None:
        self.fields = {
            "nodes": {"min": minimum, "max": members, "desired": members},
            "recovery": {"preflight": {"enabled": True}} | recovery,
        }
        self.status = JobStatus(incarnations={str(index): 1 for index in range(members)})
        self.now, self.members = NOW, members

    def look(self, *agents: AgentView, there=None, after=1.0):
        self.now += after
        there = pods(self.members) if there is None else there
        seen = Observed(tuple(there), {view.uid: view for view in agents}, children_applied=True)
        self.decided = plan(JOB, spec(**self.fields), (), self.status, seen, self.now)
        if not any(isinstance(action, CreatePod) for action in self.decided.actions):
            again = plan(JOB, spec(**self.fields), (), self.decided.status, seen, self.now)
            assert (again.status, again.events) == (self.decided.status, ())
        self.status = self.decided.status
        return self.decided

    @property
    def checks(self) -> dict[str, tuple[int, str]]:
        """Who is to measure: the attempt, and against whom."""
        told = {uid: directive.check for uid, directive in self.decided.directives.items() if directive.check}
        return {uid: (check.attempt, check.neighbour.pod if check.neighbour else "") for uid, check in told.items()}

    @property
    def in_round(self) -> list[int]:
        return [member.index for member in self.status.round.members] if self.status.round else []

    @property
    def events(self) -> list[str]:
        return [event.reason for event in self.decided.events]


def test_nobody_is_measured_unless_that_is_asked_for():
    """Without recovery.preflight agents that could measure join at once."""
    job = Job(preflight={})
    job.look(*map(fresh, range(3)))
    assert (job.checks, job.in_round) == ({}, [0, 1, 2])
    assert find(job.status.conditions, "PreflightPassed") is None


def test_new_members_are_measured_in_a_ring_and_then_join():
    """No round before that; each measures its network against the next, whose address and key it is told."""
    job = Job()
    job.look(*map(fresh, range(3)))
    assert job.in_round == []
    assert job.checks == {"u0": (1, "j-1-1"), "u1": (1, "j-2-1"), "u2": (1, "j-0-1")}
    neighbour = job.decided.directives["u0"].check.neighbour
    assert (neighbour.host, neighbour.port, neighbour.key) == ("10.0.0.1", 7001, "key 1")
    assert "pre-flight: being measured" in find(job.status.conditions, "Running").message
    job.look(*map(measured, range(3)))
    assert (job.checks, job.in_round) == ({}, [0, 1, 2])
    assert condition(job.status, "PreflightPassed") == ("True", "Passed")
    assert (
        "3 nodes were measured, at the median: matmul 1 TFLOP/s"
        in find(job.status.conditions, "PreflightPassed").message
    )


def test_a_bad_node_is_measured_again_with_another_neighbour_and_then_rejected():
    """Its pod is deleted, the event has the numbers, the replacement is created and the others wait for it."""
    job = Job()
    job.look(measured(0), measured(1, figures=SLOW), measured(2))
    assert (job.checks, job.decided.actions, job.in_round) == ({"u1": (2, "j-0-1")}, (), [])
    job.look(measured(0), measured(1, 2, SLOW), measured(2))
    [deleted] = job.decided.actions
    assert isinstance(deleted, DeletePod)
    assert (deleted.uid, job.events) == ("u1", ["PreflightFailed", "NodeAvoided"])
    assert [known.node for known in job.status.avoided_nodes] == ["n1"]
    assert job.decided.events[0].message == (
        "it may not join and is replaced: j-1-1 on node n1: memory bandwidth 3 GB/s, its peers' median is 12 GB/s"
    )
    assert condition(job.status, "PreflightPassed") == ("False", "PreflightFailed")
    there = [pod(0), pod(1, deleting=True), pod(2)]
    job.look(measured(0), measured(1, 2, SLOW), measured(2), there=there)
    assert job.decided.actions == (CreatePod(1, 2, avoid=("n1",)),)
    assert "rejected 1 times, last j-1-1 on node n1" in find(job.status.conditions, "Running").message
    new = pod(1, name="j-1-2", uid="new", incarnation=2, node="n3")
    came = dataclasses.replace(measured(1), uid="new")
    job.look(measured(0), came, measured(2), there=[pod(0), new, pod(2)])
    assert (job.in_round, job.status.rejections) == ([0, 1, 2], ())
    assert condition(job.status, "PreflightPassed") == ("True", "Passed")


def test_a_node_that_is_good_the_second_time_joins():
    """One bad measurement rejects nobody: its neighbour, or the moment, may have been to blame."""
    job = Job()
    job.look(measured(0), measured(1, figures=FAST | {"network": 1.0}), measured(2))
    assert list(job.checks) == ["u1"]
    job.look(measured(0), measured(1, 2), measured(2))
    assert (job.in_round, job.events) == ([0, 1, 2], ["RoundStarted"])


@pytest.mark.parametrize("attempt", [1, 2])
def test_a_check_that_fails_is_repeated_once(attempt):
    """Then the node is rejected with the error, though nothing can be compared."""
    job = Job()
    job.look(measured(0), measured(1, attempt, {}, error="disk was not done after 8 s"), measured(2))
    if attempt == 1:
        assert (job.checks, job.decided.actions) == ({"u1": (2, "j-0-1")}, ())
        return
    assert job.decided.actions[0].uid == "u1"
    assert "the check failed: disk was not done after 8 s" in job.decided.events[0].message


def test_a_member_that_trains_is_not_judged_any_more():
    """It is said that it falls short of those that came later, and why it stays."""
    job = Job()
    job.look(measured(0), measured(1), after=0)
    job.look(measured(0), measured(1), after=61)
    assert job.in_round == [0, 1]
    trains = [measured(index, figures=SLOW, view=training) for index in range(2)]
    job.look(*trains, measured(2))
    assert not [action for action in job.decided.actions if isinstance(action, DeletePod)]
    assert condition(job.status, "PreflightPassed") == ("False", "SlowMember")


def test_a_newcomer_is_judged_by_those_who_train():
    """It is measured while they train, against the next of them, and they go on without it if it is bad."""
    job = Job()
    job.look(*map(measured, range(3)))
    job.look(*(measured(index, view=training) for index in range(3)))
    others = [measured(index, number=2, view=training) for index in (0, 2)]
    job.look(*others, there=[pod(0, node="n0"), pod(2, node="n2")])
    new = pod(1, name="j-1-2", uid="new", incarnation=2, node="n3")
    there = [pod(0, node="n0"), new, pod(2, node="n2")]
    came = dataclasses.replace(fresh(1), uid="new")
    job.look(*others, came, there=there)
    assert job.checks == {"new": (1, "j-2-1")}
    came = dataclasses.replace(measured(1, 2, SLOW), uid="new")
    job.look(*others, came, there=there)
    assert [action.uid for action in job.decided.actions] == ["new"]
    assert job.status.completion_time is None


def test_the_first_to_come_waits_for_a_neighbour():
    """Where there is to be one: without any it is measured alone after a while, and joins when the job may start."""
    job = Job(2)
    alone = dataclasses.replace(fresh(0), connected_for=1.0)
    job.look(alone, there=pods(1))
    assert (job.checks, job.decided.look_again) == ({}, pytest.approx(NEIGHBOUR_PATIENCE - 1))
    job.look(dataclasses.replace(alone, connected_for=NEIGHBOUR_PATIENCE), there=pods(1))
    assert job.checks == {"u0": (1, "")}


def test_members_of_one_node_have_neighbours_on_others():
    """The network within a node says nothing about the node's."""
    job = Job()
    job.look(*map(fresh, range(3)), there=[pod(0, node="a"), pod(1, node="a"), pod(2, node="b")])
    assert job.checks["u0"] == (1, "j-2-1")


def test_a_member_whose_agent_knows_no_check_joins_without():
    """An image from before is neither measured nor asked."""
    job = Job()
    job.look(agent(0), agent(1), agent(2))
    assert (job.checks, job.in_round) == ({}, [0, 1, 2])


def test_survivors_do_not_wait_for_one_that_is_being_measured():
    """A lost round is followed at once by those who are left, though a newcomer's agent is there."""
    job = Job()
    job.fields["checkpoint"] = {"durable": {"storage": "pvc://c/j"}}
    job.look(*map(measured, range(3)))
    trains = [measured(index, view=training) for index in range(3)]
    job.look(*trains)
    new = pod(2, name="j-2-2", uid="new", incarnation=2)
    came = dataclasses.replace(fresh(2), uid="new")
    job.look(*trains[:2], came, there=[*pods(2), new])
    assert job.in_round == [0, 1]


def test_pods_are_replaced_ever_later_and_a_job_that_never_trained_fails():
    """Only that member's: the replacement of others is not put off."""
    job = Job(minimum=3, maxRestarts=2)
    for count, after in ((1, []), (2, [1])):
        seen, bad = bad_member(count)
        job.look(measured(0), seen, measured(2), there=[pod(0), bad, pod(2)], after=60)
        assert [action.uid for action in job.decided.actions] == [bad.uid]
        job.look(measured(0), seen, there=[pod(0), dataclasses.replace(bad, deleting=True)])
        assert [action.index for action in job.decided.actions] == [index for index in (1, 2) if index not in after]
    assert job.decided.look_again == pytest.approx(1.0)
    seen, bad = bad_member(3)
    job.look(measured(0), seen, measured(2), there=[pod(0), bad, pod(2)])
    assert (job.status.state, condition(job.status, "Failed")) == ("Failed", ("True", "PreflightFailed"))
    assert "3 pods of member 1 were rejected in a row" in find(job.status.conditions, "Failed").message


def bad_member(incarnation: int):
    """Another pod of member 1 on its bad node."""
    uid = f"bad{incarnation}"
    seen = dataclasses.replace(measured(1, 2, SLOW), uid=uid)
    return seen, pod(1, name=f"j-1-{incarnation}", uid=uid, incarnation=incarnation, node="n1")


def test_many_bad_nodes_at_once_are_each_counted_alone():
    """A large job that finds a few of its nodes bad does not fail over their number."""
    job = Job(20, maxRestarts=2)
    agents = [measured(index, 2, SLOW if index < 5 else FAST) for index in range(20)]
    job.look(*agents)
    assert len(job.decided.actions) == 5
    assert (job.status.state, [known.count for known in job.status.rejections]) == ("Starting", [1] * 5)


def test_a_rejection_is_told_once_however_long_the_pod_stays():
    """The deletion is tried again until it is seen."""
    job = Job()
    agents = measured(0), measured(1, 2, SLOW), measured(2)
    job.look(*agents)
    job.look(*agents)
    assert ([action.uid for action in job.decided.actions], job.events) == (["u1"], [])
    assert job.status.rejections[0].count == 1


def test_rejections_are_forgotten_when_the_check_is_switched_off():
    """Whoever is there joins."""
    job = Job()
    agents = measured(0), measured(1, 2, SLOW), measured(2)
    job.look(*agents)
    job.fields["recovery"] = {}
    job.look(*agents)
    assert (job.in_round, job.status.rejections) == ([0, 1, 2], ())
