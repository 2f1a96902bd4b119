"""Snapshots in memory on real kubelets: a node's plug is pulled, and nothing that was committed is done again."""

from __future__ import annotations

import json
import time

import pytest

from devcluster.cluster import Cluster
from tests.e2e.test_cli_logs import llmtrain, output
from tests.support.jobs import FOREVER, SPREAD, claim, events, job, nodes_of, workers
from tests.support.kube import Kubectl
from tests.support.story import Story


def kill_all_workers(kubectl: Kubectl, cluster: Cluster) -> None:
    """Those that were there when it began: the agent of the second may end its worker, or begin another, meanwhile."""
    for node, pids in [(node, workers(cluster, node)) for node in nodes_of(kubectl)]:
        cluster.node(node).run(["sh", "-c", f"kill -9 {' '.join(map(str, pids))} 2> /dev/null || true"])


def test_a_node_goes_off_without_any_storage(kubectl: Kubectl, installed: Cluster, leader: str) -> None:
    """What its member had lies with another: two go on from memory at the step it was at, and a third joins again."""
    promised = {"objectives": {"node": "15s", "lostSteps": 0}}
    kubectl.apply(job(steps=FOREVER, nodes={"min": 2, "max": 3}, template=SPREAD, recovery=promised))
    with Story(kubectl) as story:
        before = story.until(lambda m: m.size == 3 and m.copied)
        assert before.condition("Protected")["reason"] == "MemoryCopies"
        node = installed.node(next(name for name in nodes_of(kubectl) if name != leader))
        off = time.monotonic()
        node.off()
        try:
            stepped = story.until(lambda m: m.round == 2 and m.trains and m.status["state"] == "Running", since=off)
            print(f"node off: next step after {stepped.at - off:.1f} s")
            safe = max(moment.committed for moment in story.moments if moment.at < stepped.at and moment.round == 1)
            assert stepped.status["checkpoint"]["restoredStep"] >= safe
            assert "memory" in stepped.status["checkpoint"]["restoredFrom"]
            assert stepped.status["restarts"] == 1
            [incident] = stepped.status["incidents"]
            assert (incident["kind"], incident["reason"], incident["lostSteps"]) == ("node", "PodLost", 0)
            assert incident["detectSeconds"] <= incident["roundSeconds"] <= incident["trainSeconds"]
            assert stepped.condition("ObjectivesMet")["status"] == "True"
            print("\n".join(output(llmtrain(kubectl, "incidents", "j"))))
        finally:
            node.on()
        back = story.until(lambda m: m.size == 3 and m.copied, since=stepped.at, seconds=150)
        steps = [moment.step for moment in story.moments if moment.at >= before.at]
        assert min(steps) >= before.committed
        assert back.committed > before.committed
    assert any("memory" in said for said in events(kubectl, "Restored"))


def test_workers_that_die_go_on_where_they_were(kubectl: Kubectl, installed: Cluster) -> None:
    """All of them at once, again and again: from their own pods' memory, which nobody has to be asked for."""
    kubectl.apply(job(steps=FOREVER, members=2, recovery={"maxRestarts": 10}))
    with Story(kubectl) as story:
        for number in range(1, 3):
            seen = story.until(lambda m, number=number: m.round == number and m.copied)
            kill_all_workers(kubectl, installed)
            again = story.until(lambda m, number=number: m.round == number + 1 and m.trains, since=seen.at)
            assert again.status["checkpoint"]["restoredStep"] >= seen.committed
            assert "its own memory" in again.status["checkpoint"]["restoredFrom"]
    listed = json.loads("\n".join(output(llmtrain(kubectl, "checkpoints", "ls", "j", "--tier", "memory", "--json"))))
    kinds = [{one["kind"] for one in member["snapshots"]} for member in listed["members"]]
    assert kinds == [{"own", "replica"}] * 2


def test_a_frozen_worker_is_found_named_and_replaced(kubectl: Kubectl, installed: Cluster) -> None:
    """It holds its connections, so that no collective fails; then its zygote dies, and the agent makes another."""
    kubectl.apply(job(steps=FOREVER, members=2, recovery={"maxRestarts": 10}))
    with Story(kubectl) as story:
        seen = story.until(lambda m: m.copied)
        name = next(iter(nodes_of(kubectl)))
        installed.node(name).run(["kill", "-STOP", *map(str, workers(installed, name))])
        frozen = time.monotonic()
        again = story.until(lambda m: m.round == 2 and m.trains, since=seen.at)
        print(f"frozen: next step after {again.at - frozen:.1f} s")
        assert again.status["lastFailure"]["reason"] == "Hang"
        assert "was stopped (SIGSTOP)" in again.status["lastFailure"]["message"]
        assert again.status["checkpoint"]["restoredStep"] >= seen.committed
        installed.node(name).run(["kill", "-9", *map(str, workers(installed, name, "llmtrain-[z]ygote"))])
        story.until(lambda m: m.round == 3 and m.size == 2 and m.trains, since=again.at)
    assert "the zygote has ended" in kubectl("logs", "-l", "llmtrain.io/job=j", "--tail=-1")


def test_the_last_gasp(kubectl: Kubectl, installed: Cluster) -> None:
    """A job that gives up has its newest snapshot in storage, where no save was due for an hour."""
    checkpoint = {"durable": {"storage": "pvc://checkpoints/j", "every": "1h"}}
    kubectl.apply(
        claim("checkpoints"), job(steps=FOREVER, members=2, recovery={"maxRestarts": 0}, checkpoint=checkpoint)
    )
    with Story(kubectl) as story:
        seen = story.until(lambda m: m.copied)
        assert "step" not in seen.status.get("checkpoint", {})
        kill_all_workers(kubectl, installed)
        story.until(lambda m: m.status["state"] == "Failed", since=seen.at)
        safe = max(moment.committed for moment in story.moments)
    kubectl("wait", "pod", "-l", "llmtrain.io/job=j", "--for=jsonpath={.status.phase}=Failed", "--timeout=90s")
    kubectl("delete", "ltj", "j", "--wait=true")
    kubectl.apply(job(steps=FOREVER, members=1, checkpoint=checkpoint))
    with Story(kubectl) as story:
        again = story.until(lambda m: m.trains)
        assert again.status["checkpoint"]["restoredStep"] >= safe
        assert again.status["checkpoint"]["restoredFrom"].startswith("pvc://checkpoints/j")


@pytest.mark.parametrize("memory", ["1Mi"])
def test_memory_that_is_too_small_is_an_error_before_training(kubectl: Kubectl, memory: str) -> None:
    """With the number of bytes that are needed."""
    kubectl.apply(job(checkpoint={"flash": {"memory": memory}}))
    kubectl.wait("ltj/j", "condition=Failed")
    failure = kubectl.job("j")["lastFailure"]
    assert failure["reason"] == "InvalidConfig"
    assert "spec.checkpoint.flash" in failure["message"]
    assert "bytes of memory in each pod and there are 1048576" in failure["message"]
