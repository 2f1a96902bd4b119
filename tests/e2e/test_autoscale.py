"""Jobs that choose their own size, on real nodes: one that comes is used, and given up for a job of higher priority."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from devcluster.cluster import Cluster, ClusterNode
from tests.e2e.test_elastic import CLAIM, durable, events, leader, no_step_is_done_twice, nodes_of
from tests.e2e.test_job import job
from tests.support.kube import Kubectl
from tests.support.story import Moment, Story

__all__ = ["leader"]

WHOLE_NODE = {"containers": [{"name": "trainer", "resources": {"limits": {"nvidia.com/gpu": "2"}}}]}
"""Both of the devices that a node offers, so that no two members share one."""
EAGER = {"enabled": True, "coolDown": "1s", "maxPauseShare": 0.5}
URGENT = {
    "apiVersion": "scheduling.k8s.io/v1",
    "kind": "PriorityClass",
    "metadata": {"name": "urgent"},
    "value": 1000,
    "preemptionPolicy": "Never",  # what makes room is the other job, not the scheduler
}


def measured(moment: Moment, members: int) -> bool:
    """Whether the job knows how long its steps take at this size."""
    sizes = moment.status.get("stepTimes", {}).get("sizes", ())
    return any(size["members"] == members and size["steps"] >= 5 for size in sizes)


def last(moment: Moment) -> dict[str, Any]:
    """The newest change of size."""
    found: dict[str, Any] = moment.status.get("autoscale", {}).get("last", {})
    return found


@pytest.fixture
def third(installed: Cluster, leader: str, kubectl: Kubectl) -> Iterator[ClusterNode]:
    """A node that is off, as the cluster knows; the operator that leads is on another."""
    node = next(node for node in installed.nodes if node.name != leader)
    node.off()
    try:
        kubectl("wait", f"node/{node.name}", "--for=condition=Ready=Unknown", "--timeout=90s", timeout=100)
        yield node
    finally:
        node.on()


def test_a_node_that_comes_makes_the_job_grow(kubectl: Kubectl, third: ClusterNode) -> None:
    """It begins with the two that there are and waits for nobody; the third is asked for as soon as it is Ready, and
    joins at a step boundary. What that cost and brought is in the status."""
    kubectl.apply(CLAIM, durable(1, autoscale=EAGER))
    with Story(kubectl) as story:
        two = story.until(lambda m: m.size == 2 and m.trains and measured(m, 2))
        assert two.status["round"]["number"] == 1
        assert two.status["targetNodes"] == 2
        third.on()
        ready = time.monotonic()
        wanted = story.until(lambda m: m.status["targetNodes"] == 3, since=two.at)
        grown = story.until(lambda m: m.size == 3 and m.trains, since=wanted.at)
        print(f"node ready: wanted after {wanted.at - ready:.1f} s, trains with it after {grown.at - ready:.1f} s")
        assert last(wanted)["reason"] in ("Growing", "Exploring")
        assert last(wanted)["predictedSpeedup"] > 1
        known = story.until(lambda m: last(m).get("achievedSpeedup") and "pauseSeconds" in last(m), since=grown.at)
        print(f"predicted {last(known)['predictedSpeedup']}x, achieved {last(known)['achievedSpeedup']}x, "
              f"pause {last(known)['pauseSeconds']} s")  # fmt: skip
        no_step_is_done_twice(story, known.status)
    assert events(kubectl, "Autoscaled")
    assert "predicted" in events(kubectl, "AutoscaleMeasured")[0]


def test_a_job_of_higher_priority_takes_a_node_and_gives_it_back(kubectl: Kubectl, installed: Cluster) -> None:
    """The other one gives up a member at a step boundary, and has it again afterwards; neither loses a round."""
    spec = {"template": {"spec": WHOLE_NODE}}
    low = durable(1, autoscale=EAGER)
    low["spec"] |= spec
    kubectl.apply(CLAIM, URGENT, low)
    with Story(kubectl) as story:
        story.until(lambda m: m.size == 3 and m.trains and measured(m, 3))
        assert nodes_of(kubectl).keys() == {"n1", "n2", "n3"}
        kubectl.apply(job("urgent", steps=300, members=1, scheduling={"priorityClassName": "urgent"}, **spec))
        asked = time.monotonic()
        yields = story.until(lambda m: m.size == 2 and m.trains, since=asked)
        assert last(yields)["reason"] == "HigherPriority"
        kubectl.wait("ltj/urgent", "condition=Running")
        print(f"second job: trains {time.monotonic() - asked:.1f} s after it was applied")
        kubectl.wait("ltj/urgent", "condition=Complete")
        over = time.monotonic()
        again = story.until(lambda m: m.size == 3 and m.trains, seconds=180, since=over)
        print(f"second job over: the first one has its node again after {again.at - over:.1f} s")
        no_step_is_done_twice(story, again.status)
    assert kubectl.job("urgent")["restarts"] == 0
    kubectl("delete", "priorityclass", "urgent")
