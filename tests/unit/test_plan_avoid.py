"""Nodes that fail a job again and again are avoided for a while, by new pods, unless the job cannot do without them."""

from __future__ import annotations

import dataclasses

import pytest

from llmtrain_operator.conditions import seconds
from llmtrain_operator.contract import names
from llmtrain_operator.contract.wire import Failure
from llmtrain_operator.state import AgentView, CreatePod, DeletePod, Observed
from tests.support.elastic import NODES, STORAGE, Job, gone, silent, training
from tests.support.planner import agent, condition, pod, step

HOUR = 3600.0


class Flaky:
    """A job of three members on nodes n0, n1 and n2; `fail` has something happen to one of them and be got over."""

    def __init__(self, **fields) -> None:
        self.job = Job(**fields)
        self.pods = [pod(index, node=f"n{index}") for index in range(3)]
        stored = self.job.status.round
        members = tuple(member.model_copy(update={"node": f"n{member.index}"}) for member in stored.members)
        self.job.status = self.job.status.model_copy(
            update={"round": stored.model_copy(update={"members": members}), "incarnations": dict.fromkeys("0123", 1)}
        )
        self.told: list[str] = []

    @property
    def status(self):
        return self.job.status

    @property
    def avoided(self) -> list[str]:
        return [one.node for one in self.status.avoided_nodes]

    def look(self, *agents: AgentView, pods=None, after=1.0) -> None:
        self.job.look(*agents, pods=self.pods if pods is None else pods, after=after)
        self.told += self.job.events

    def train(self, after=1.0) -> None:
        """All go on; those who are in no round wait for one."""
        current = self.status.round
        here = {member.index for member in current.members} if current else set()
        number = self.status.rounds
        self.look(*(training(i, number) if i in here else gone(i, number - 1) for i in range(3)), after=after)

    def leave(self, after=1.0) -> None:
        """All have left the round, as they were asked to, or because it was lost."""
        self.look(*(gone(i, self.status.rounds) for i in range(3)), after=after)

    def fail(self, how, index=1) -> None:
        number = self.status.round.number
        views, pods = [training(i, number) for i in range(3)], list(self.pods)
        views[index], pods[index] = how(views[index], pods[index])
        self.look(*(view for view in views if view), pods=[there for there in pods if there], after=60)
        for _ in range(4):
            if self.status.round is None or self.status.round.ending:
                self.leave(after=70)  # longer than any pause
            else:
                self.train(after=70)
        self.train()
        assert (self.status.state, len(self.status.round.members)) == ("Running", 3)


def falls_silent(view, there):
    return silent(view, 5.0), there


def evicted(view, there):
    return None, dataclasses.replace(there, phase="Failed", reason="Evicted")


def preempted(view, there):
    return None, dataclasses.replace(there, phase="Failed", reason="PreemptionByScheduler")


def out_of_memory(view, there):
    return None, dataclasses.replace(there, phase="Failed", reason="OOMKilled")


def deleted(view, there):
    return None, None


def ends(reason, number=None):
    def how(view, there):
        current = view.report.round
        failure = Failure(reason, f"in round {current}", current, rank=1, step=current, signal=number)
        return agent(1, "failed", current, store_port=5001, failure=failure), there

    return how


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        pytest.param(falls_silent, "PodLost", id="node-off"),
        pytest.param(evicted, "PodLost", id="pod-failed"),
        pytest.param(ends(names.REASON_HANG), "Hang", id="hangs"),
        pytest.param(ends(names.REASON_KILLED, 7), "Killed", id="bus-error"),
    ],
)
def test_a_node_that_fails_three_times_is_avoided(how, reason) -> None:
    """It is said once, with the reason, and new pods are made for other nodes; who is there stays."""
    flaky = Flaky()
    for count in range(3):
        assert flaky.avoided == [], count
        flaky.fail(how)
    assert (flaky.avoided, flaky.told.count("NodeAvoided")) == (["n1"], 1)
    [one] = flaky.status.avoided_nodes
    assert (one.reason, one.failures) == (reason, 3)
    assert flaky.job.decided.actions == ()
    number = flaky.status.round.number
    flaky.look(training(0, number), training(2, number), pods=[flaky.pods[0], flaky.pods[2]])
    flaky.look(training(0, number + 1), training(2, number + 1), pods=[flaky.pods[0], flaky.pods[2]], after=70)
    assert [create.avoid for create in flaky.job.creates] == [("n1",)]


@pytest.mark.parametrize(
    "how",
    [
        pytest.param(deleted, id="pod-deleted"),
        pytest.param(preempted, id="preempted"),
        pytest.param(out_of_memory, id="out-of-its-memory"),
        pytest.param(ends(names.REASON_USER_ERROR), id="exception"),
        pytest.param(ends(names.REASON_KILLED, 9), id="killed"),
        pytest.param(ends(names.REASON_PEER_LOST), id="peer-lost"),
    ],
)
def test_what_is_not_the_nodes_doing_is_not_held_against_it(how) -> None:
    """However often."""
    flaky = Flaky(recovery={"maxRestarts": 100})
    for _ in range(5):
        flaky.fail(how)
    assert (flaky.avoided, flaky.status.node_failures) == ([], ())


def test_where_all_nodes_fail_alike_none_is_avoided() -> None:
    """It is something else then: the network, the job."""
    flaky = Flaky()
    for number in range(9):
        flaky.fail(falls_silent, index=number % 3)
    assert (flaky.avoided, len(flaky.status.node_failures)) == ([], 9)


def test_it_is_allowed_again_in_time_and_avoided_for_longer_if_it_fails_again() -> None:
    """The operator wakes for it. All of it is in the status, so that another operator goes on with it."""
    flaky = Flaky()
    for _ in range(3):
        flaky.fail(falls_silent)
    until = seconds(flaky.status.avoided_nodes[0].until)
    flaky.train()
    assert flaky.job.decided.look_again <= until - flaky.job.now
    flaky.train(after=HOUR)
    assert flaky.avoided == []
    for _ in range(3):
        assert flaky.avoided == []
        flaky.fail(falls_silent)
    [one] = flaky.status.avoided_nodes
    assert one.failures == 6
    assert seconds(one.until) - flaky.job.now == pytest.approx(2 * HOUR, abs=600)


def test_pods_that_end_before_they_join_count_too() -> None:
    """A node where none comes up, be it a driver, a disk or an image that is broken there."""
    job = Job()
    others = [pod(0, node="n0"), pod(2, node="n2")]
    job.look(training(0), training(2), pods=others)
    for incarnation in range(2, 5):
        broken = pod(1, uid=f"x{incarnation}", incarnation=incarnation, node="n1", phase="Failed", reason="StartError")
        job.look(training(0, 2), training(2, 2), pods=[*others, broken], after=70)
    assert [(one.node, one.reason) for one in job.status.avoided_nodes] == [("n1", "StartError")]
    job.look(training(0, 2), training(2, 2), pods=others, after=70)
    assert [create.avoid for create in job.creates] == [("n1",)]


def test_waiting_pods_are_made_anew_when_that_changes() -> None:
    """A pod's affinity cannot be edited; one that has a node is left alone."""
    flaky = Flaky()
    for _ in range(3):
        flaky.fail(falls_silent)
    flaky.job.fields["nodes"] = NODES | {"max": 4, "desired": 4}
    number = flaky.status.round.number
    agents = [training(i, number) for i in range(3)]
    waiting = {"phase": "Pending", "scheduled": False, "node": ""}
    flaky.look(*agents, pods=[*flaky.pods, pod(3, **waiting)])
    assert [type(action) for action in flaky.job.decided.actions] == [DeletePod, CreatePod]
    assert "it is to avoid n1" in flaky.job.decided.actions[0].reason
    settled = pod(3, uid="u3b", incarnation=2, avoids=("n1",), unschedulable_message="no room", **waiting)
    flaky.look(*agents, pods=[*flaky.pods, settled])
    assert flaky.job.decided.actions == ()
    assert "no room; status.avoidedNodes: n1" in flaky.job.message("Scheduled")
    flaky.look(*agents, pods=[*flaky.pods, settled], after=HOUR)
    assert "no node any more" in flaky.job.decided.actions[0].reason


@pytest.mark.parametrize(
    ("minimum", "lifted"), [pytest.param(3, True, id="too-few-left"), pytest.param(2, False, id="enough-left")]
)
def test_avoidance_gives_way_where_the_job_cannot_do_without(minimum, lifted) -> None:
    """After some seconds in which members found no place; the job says so, and what the node did is forgotten."""
    flaky = Flaky(nodes=NODES | {"min": minimum})
    for _ in range(3):
        flaky.fail(falls_silent)
    others = [flaky.pods[0], flaky.pods[2]]
    number = flaky.status.round.number
    waiting = {"phase": "Pending", "scheduled": False, "node": "", "unschedulable_message": "0/3 nodes"}
    seen = [*others, pod(1, uid="new", incarnation=2, avoids=("n1",), **waiting)]
    flaky.look(training(0, number), training(2, number), pods=others)
    flaky.look(gone(0, number), gone(2, number), pods=seen, after=5)
    assert flaky.avoided == ["n1"]
    flaky.look(gone(0, number), gone(2, number), pods=seen, after=6)
    assert (flaky.avoided == [], "AvoidanceGivesWay" in flaky.told) == (lifted, lifted)
    if lifted:
        assert isinstance(flaky.job.decided.actions[0], DeletePod)
        assert "n1" not in [one.node for one in flaky.status.node_failures]
        flaky.look(gone(0, number), gone(2, number), pods=others, after=70)
        assert [create.avoid for create in flaky.job.creates] == [()]


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"recovery": {"avoidNodes": False}}, id="not-wanted"),
        pytest.param({"template": {"spec": {"nodeName": "n1"}}}, id="the-template-names-the-node"),
    ],
)
def test_where_nodes_cannot_be_avoided_none_is(fields) -> None:
    """Nothing is said that would have no effect."""
    flaky = Flaky(**fields)
    for _ in range(4):
        flaky.fail(falls_silent)
    assert (flaky.avoided, flaky.status.node_failures) == ([], ())


@pytest.mark.parametrize(
    ("fields", "able", "noted"),
    [
        pytest.param({}, True, 1, id="a-cluster"),
        pytest.param({"scheduling": {"queue": "q"}}, True, 0, id="kueue"),
        pytest.param({}, False, 0, id="all-nodes-are-one-machine"),
    ],
)
def test_where_pods_cannot_be_kept_off_nodes_nothing_is_noted(fields, able, noted) -> None:
    """Kueue chooses nodes by itself, and without a cluster none of them is better."""
    job = Job()
    agents = training(0), silent(training(1)), training(2)
    seen = Observed(tuple(map(pod, range(3))), {view.uid: view for view in agents}, children_applied=True)
    lost = dataclasses.replace(seen, can_avoid=able)
    decided = step(job.status, lost, now=job.now, nodes=NODES, checkpoint=STORAGE, **fields)
    assert (decided.status.restarts, len(decided.status.node_failures)) == (1, noted)


def test_taking_the_wish_back_frees_the_nodes_at_once() -> None:
    """An edit of spec.recovery.avoidNodes is all it takes."""
    flaky = Flaky()
    for _ in range(3):
        flaky.fail(falls_silent)
    assert condition(flaky.status, "Scheduled")[0] == "True"
    flaky.job.fields["recovery"] = {"avoidNodes": False}
    flaky.train()
    assert flaky.avoided == []
