"""The leading operator is lost while a job trains: nothing of the training is, and what happens next is handled."""

from __future__ import annotations

import time

from devcluster.chaos import SYSTEM
from devcluster.cluster import Cluster
from llmtrain_operator.agents import ARRIVAL_GRACE
from llmtrain_operator.membership import GIVEN_UP
from tests.support.jobs import FOREVER, REQUESTS, SPREAD, job, members, until_training, workers
from tests.support.kube import Kubectl
from tests.support.leadership import await_leader, kill
from tests.support.story import Story

FAILOVER = 15.0
"""Seconds within which a standby acts, in the worst case."""


def test_training_goes_on_without_the_leader_and_with_the_next(kubectl: Kubectl, installed: Cluster) -> None:
    """The leader is killed without a word. The standby follows the job within seconds, in the same round with the same
    workers; a worker that is killed then gives the next round."""
    system = Kubectl(installed.kubectl, installed.kubeconfig, SYSTEM)
    kubectl.apply(job(steps=FOREVER, template=REQUESTS))
    until_training(kubectl)
    before, pods = kubectl.job("j"), members(kubectl)
    nodes = {pod["spec"]["nodeName"] for pod in pods.values()}
    running = {node: workers(installed, node) for node in nodes}
    old = await_leader(system)
    with Story(kubectl) as story:
        kill(installed, system, old)
        killed = time.monotonic()
        new = await_leader(system, but=old)
        leads = time.monotonic()
        followed = story.until(lambda moment: moment.trains, FAILOVER, since=leads)
        print(f"leader killed -> {new} leads {leads - killed:.1f} s, shows progress {followed.at - killed:.1f} s")
        assert followed.at - killed < FAILOVER
        # By now an agent that had not come over would be held to be lost.
        settled = followed.at + ARRIVAL_GRACE + GIVEN_UP
        after = story.until(lambda moment: moment.trains, 60, since=settled).status
    assert (after["rounds"], after["restarts"]) == (before["rounds"], 0)
    assert [m["uid"] for m in after["round"]["members"]] == [m["uid"] for m in before["round"]["members"]]
    assert after["progress"]["step"] > before["progress"]["step"]
    assert {node: workers(installed, node) for node in nodes} == running
    victim = pods["j-1-1"]["spec"]["nodeName"]
    installed.node(victim).run(["kill", "-9", *map(str, workers(installed, victim))])
    kubectl.wait("ltj/j", "jsonpath={.status.restarts}=1", 20)
    kubectl.wait("ltj/j", "jsonpath={.status.round.number}=2", 30)
    assert {pod["metadata"]["uid"] for pod in members(kubectl).values()} == {
        pod["metadata"]["uid"] for pod in pods.values()
    }


def test_the_leader_and_a_member_go_off_together(kubectl: Kubectl, installed: Cluster) -> None:
    """The next leader has never heard of the member, and misses it because the others, whom it hears, stand still."""
    system = Kubectl(installed.kubectl, installed.kubeconfig, SYSTEM)
    kubectl.apply(job(steps=FOREVER, nodes={"min": 2, "max": 3}, template=SPREAD))
    with Story(kubectl) as story:
        before = story.until(lambda m: m.size == 3 and m.copied)
        node = installed.node(system.get("pod", await_leader(system))["spec"]["nodeName"])
        off = time.monotonic()
        node.off()
        try:
            stepped = story.until(lambda m: m.round > before.round and m.trains, 60, since=off)
            print(f"leader and member off: next step after {stepped.at - off:.1f} s")
            assert stepped.status["checkpoint"]["restoredStep"] >= before.committed
            assert stepped.status["incidents"][-1]["reason"] == "PodLost"
        finally:
            node.on()
    system("rollout", "status", "deploy/llmtrain", "--timeout=120s", timeout=130)
