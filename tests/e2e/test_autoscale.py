"""Jobs that choose their own size, on real nodes: one that comes is used, and given up for a job of higher priority.

They run a script whose step is a rest of so many seconds divided by the workers, so that more members help however many
share a machine's cores.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from devcluster.cluster import Cluster, ClusterNode
from tests.support.jobs import APART, events, nodes_of
from tests.support.kube import Kubectl
from tests.support.story import Moment, Story

SCRIPT = """
import sys, time
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from llmtrain_trainer.flash import Checkpointer

rest, steps = float(sys.argv[1]), int(sys.argv[2])
dist.init_process_group("gloo")
model = DistributedDataParallel(torch.nn.Linear(8, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
with Checkpointer(model, optimizer, max_steps=steps) as checkpointer:
    for step in range(checkpointer.restore() + 1, steps + 1):
        time.sleep(rest / dist.get_world_size())
        x = torch.randn(8, 8)
        loss = (model(x) - x.sum(dim=1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        checkpointer.step(step, loss)
dist.destroy_process_group()
"""
CODE = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "code"}, "data": {"rest.py": SCRIPT}}
REST = 1.2
"""Seconds that a step takes one worker."""
FOREVER = 20_000
EAGER = {"enabled": True, "coolDown": "1s", "maxPauseShare": 0.5}
URGENT = {
    "apiVersion": "scheduling.k8s.io/v1",
    "kind": "PriorityClass",
    "metadata": {"name": "urgent"},
    "value": 1000,
    "preemptionPolicy": "Never",  # what makes room is the other job, not the scheduler
}


def restful(name: str, steps: int, *, whole: bool = False, **spec: Any) -> dict[str, Any]:
    """A job of the script. `whole`: a member takes both of the devices that a node offers, so that no other job's is
    beside it; else only one of its own job's is never."""
    limits = {"limits": {"nvidia.com/gpu": "2"}} if whole else {}
    trainer = {"name": "trainer", "resources": limits, "volumeMounts": [{"name": "code", "mountPath": "/code"}]}
    pod: dict[str, Any] = {
        "containers": [trainer],
        "volumes": [{"name": "code", "configMap": {"name": "code"}}],
    }
    if not whole:
        pod["affinity"] = {"podAntiAffinity": APART}
    return {
        "apiVersion": "llmtrain.io/v1alpha1",
        "kind": "LLMTrainJob",
        "metadata": {"name": name},
        "spec": {
            "entrypoint": {"script": "/code/rest.py", "args": [str(REST), str(steps)]},
            "checkpoint": {"flash": {"memory": "16Mi"}},
            "template": {"spec": pod},
            **spec,
        },
    }


def measured(moment: Moment, members: int) -> bool:
    """Whether the job knows how long its steps take at this size."""
    sizes = moment.status.get("stepTimes", {}).get("sizes", ())
    return any(size["members"] == members and size["steps"] >= 5 for size in sizes)


def last(moment: Moment) -> dict[str, Any]:
    """The newest change of size."""
    found: dict[str, Any] = moment.status.get("autoscale", {}).get("last", {})
    return found


def reckoned(moment: Moment) -> bool:
    """Whether it is known what the newest change brought and cost."""
    return {"achievedSpeedup", "pauseSeconds"} <= last(moment).keys()


def none_lost(status: dict[str, Any]) -> None:
    """No round was lost."""
    assert (status["restarts"], status.get("incidents", [])) == (0, [])


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


@pytest.fixture
def priority_class(kubectl: Kubectl) -> Iterator[str]:
    """One above the default, which ends nobody's pods."""
    kubectl.apply(URGENT)
    yield "urgent"
    kubectl("delete", "priorityclass", "urgent")


def test_a_node_that_comes_makes_the_job_grow(kubectl: Kubectl, third: ClusterNode) -> None:
    """It begins with the two that there are and waits for nobody; the third is asked for as soon as it is Ready, and
    joins at a step boundary. What that cost and brought is in the status."""
    kubectl.apply(CODE, restful("j", FOREVER, nodes={"min": 1, "max": 3}, autoscale=EAGER))
    with Story(kubectl) as story:
        two = story.until(lambda m: m.size == 2 and m.trains and measured(m, 2), 180)
        assert (two.status["round"]["number"], two.status["targetNodes"]) == (1, 2)
        third.on()
        ready = time.monotonic()
        wanted = story.until(lambda m: m.status["targetNodes"] == 3, 180, since=two.at)
        grown = story.until(lambda m: m.size == 3 and m.trains, 180, since=wanted.at)
        print(f"node ready: wanted after {wanted.at - ready:.1f} s, trains with it after {grown.at - ready:.1f} s")
        assert last(wanted)["reason"] in ("Growing", "Exploring")
        assert last(wanted)["predictedSpeedup"] > 1.2
        known = last(story.until(reckoned, 180, since=grown.at))
        brought = f"predicted {known['predictedSpeedup']}x, achieved {known['achievedSpeedup']}x"
        print(f"{brought}, pause {known['pauseSeconds']} s")
        assert known["achievedSpeedup"] > 1
        none_lost(story.moments[-1].status)
    assert events(kubectl, "Autoscaled")
    assert "predicted" in events(kubectl, "AutoscaleMeasured")[0]


def test_a_job_of_higher_priority_takes_a_node_and_gives_it_back(kubectl: Kubectl, priority_class: str) -> None:
    """The other one gives up a member at a step boundary, and has it again afterwards; neither loses a round."""
    kubectl.apply(CODE, restful("j", FOREVER, whole=True, nodes={"min": 1, "max": 3}, autoscale=EAGER))
    with Story(kubectl) as story:
        story.until(lambda m: m.size == 3 and m.trains and measured(m, 3), 180)
        assert nodes_of(kubectl).keys() == {"n1", "n2", "n3"}
        kubectl.apply(restful("urgent", 25, whole=True, scheduling={"priorityClassName": priority_class}))
        asked = time.monotonic()
        yields = story.until(lambda m: m.size == 2 and m.trains, 180, since=asked)
        assert last(yields)["reason"] == "HigherPriority"
        kubectl.wait("ltj/urgent", "condition=Running")
        print(f"second job: trains {time.monotonic() - asked:.1f} s after it was applied")
        kubectl.wait("ltj/urgent", "condition=Complete")
        over = time.monotonic()
        again = story.until(lambda m: m.size == 3 and m.trains, 240, since=over)
        print(f"second job over: the first one has its node again after {again.at - over:.1f} s")
        none_lost(again.status)
    none_lost(kubectl.job("urgent"))
    assert any("urgent" in said for said in events(kubectl, "Autoscaled"))
