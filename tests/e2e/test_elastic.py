"""Faults and sizes on real kubelets: what a job with durable storage lives through, going on where it was."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from devcluster.cluster import Cluster
from tests.support.jobs import APART, FOREVER, claim, events, job, nodes_of
from tests.support.kube import Kubectl, KubectlError
from tests.support.story import Story


def durable(lowest: int, **spec: Any) -> dict[str, Any]:
    """A job that never ends, on up to three nodes, one member each, with a checkpoint every few steps."""
    return job(
        steps=FOREVER,
        nodes={"min": lowest, "max": 3},
        checkpoint={"durable": {"storage": "pvc://checkpoints/j", "everySteps": 20}},
        template={"spec": {"affinity": {"podAntiAffinity": APART}}},
        **spec,
    )


def until_saved(story: Story, since: float = 0.0) -> int:
    """Wait for a round of three that has done more than its newest checkpoint; the checkpoint's step."""
    seen = story.until(
        lambda m: m.size == 3 and m.trains and 0 < m.status.get("checkpoint", {}).get("step", 0) < m.step, since=since
    )
    return int(seen.status["checkpoint"]["step"])


def never_at_the_beginning_again(story: Story, saved: int) -> None:
    """Once there was a checkpoint at step `saved`, no status showed an earlier step."""
    begun = next(
        i for i, moment in enumerate(story.moments) if moment.status.get("checkpoint", {}).get("step") == saved
    )
    assert min(moment.step for moment in story.moments[begun:]) >= saved


def adds_up(status: dict[str, Any], *causes: str) -> None:
    """Each of these causes took time, and none was lost."""
    assert {cause for cause in causes if status["ledger"].get(cause, 0) > 0} == set(causes)


def test_a_node_goes_off_and_comes_back(kubectl: Kubectl, installed: Cluster, leader: str) -> None:
    """Two go on within seconds, long before Kubernetes knows; the third joins them again at a step boundary."""
    kubectl.apply(claim("checkpoints"), durable(2))
    with Story(kubectl) as story:
        saved = until_saved(story)
        lost = next(name for name in nodes_of(kubectl) if name != leader)
        node = installed.node(lost)
        off = time.monotonic()
        node.off()
        try:
            decided = story.until(lambda m: m.round == 2, since=off)
            stepped = story.until(lambda m: m.round == 2 and m.trains and m.status["state"] == "Running", since=off)
            print(f"node off: new round after {decided.at - off:.1f} s, next step after {stepped.at - off:.1f} s")
            assert (decided.size, stepped.status["restarts"]) == (2, 1)
            assert decided.at - off < 12
            assert stepped.condition("Resizing")["reason"] == "WaitingForMembers"
        finally:
            node.on()
        back = story.until(lambda m: m.size == 3 and m.trains and m.status["state"] == "Running", since=stepped.at)
        assert (back.status["restarts"], back.status["lastFailure"]["reason"]) == (1, "PodLost")
        assert back.condition("Resizing")["status"] == "False"
        never_at_the_beginning_again(story, saved)
    adds_up(back.status, "productive", "restart", "resize")
    assert any(said.startswith("round 2 goes on at step") for said in events(kubectl, "Restored"))
    assert events(kubectl, "RoundClosed")


def test_a_spare_takes_the_place_of_a_node_that_goes_off(kubectl: Kubectl, installed: Cluster, leader: str) -> None:
    """The very next round is of full size, from what the others have in memory; the node that is back has the spare."""
    kubectl.apply(
        job(
            steps=FOREVER,
            nodes={"min": 1, "max": 2, "spares": 1},
            template={"spec": {"affinity": {"podAntiAffinity": APART}}},
        )
    )
    with Story(kubectl) as story:
        ready = story.until(lambda m: m.size == 2 and m.trains and m.status.get("spares") == 1 and m.committed > 0)
        pods = {m["uid"]: m for m in ready.status["round"]["members"]}
        lost = next(member["node"] for member in pods.values() if member["node"] != leader)
        node = installed.node(lost)
        off = time.monotonic()
        node.off()
        try:
            decided = story.until(lambda m: m.round == 2, since=off)
            stepped = story.until(lambda m: m.round == 2 and m.trains and m.status["state"] == "Running", since=off)
            print(f"node off: new round after {decided.at - off:.1f} s, next step after {stepped.at - off:.1f} s")
            assert (decided.size, decided.status["nodes"], stepped.status["restarts"]) == (2, "2/2", 1)
            assert decided.at - off < 12
            named = {member["uid"] for member in decided.status["round"]["members"]}
            assert len(named - pods.keys()) == 1, "the spare is in it"
            over = story.until(lambda m: (m.status.get("incidents") or [{}])[0].get("outcome"), since=off)
            assert over.status["incidents"][0]["lostSteps"] == 0
        finally:
            node.on()
        back = story.until(lambda m: m.status.get("spares") == 1, since=stepped.at)
        assert (back.round, back.size) == (2, 2), "whoever comes back joins no round that is whole"
    assert not events(kubectl, "RoundClosed")


def test_sizes_and_second_lives(kubectl: Kubectl, installed: Cluster) -> None:
    """Scaled down and up, a pod deleted, suspended, then deleted and applied again: the step only grows."""
    kubectl.apply(claim("checkpoints"), durable(1))
    with Story(kubectl) as story:
        saved = until_saved(story)
        with pytest.raises(KubectlError, match=r"nodes\.desired must lie between nodes\.min and nodes\.max"):
            kubectl("scale", "ltj/j", "--replicas=9")
        kubectl("scale", "ltj/j", "--replicas=2")
        two = story.until(lambda m: m.size == 2 and m.trains)
        assert two.status["nodes"] == "2/2"
        kubectl("scale", "ltj/j", "--replicas=3")
        three = story.until(lambda m: m.size == 3 and m.trains, since=two.at)
        assert (three.status["restarts"], three.step >= two.step > 0) == (0, True)
        kubectl("delete", "pod", three.status["round"]["members"][1]["pod"], "--wait=false")
        drained = story.until(lambda m: m.size == 2 and m.trains, since=three.at)
        assert drained.status["restarts"] == 0, "it had time to save"
        kubectl("patch", "ltj", "j", "--type=merge", "-p", '{"spec":{"suspend":true}}')
        rest = story.until(lambda m: m.status["state"] == "Suspended", since=drained.at)
        assert rest.step >= drained.step >= three.step
        never_at_the_beginning_again(story, saved)
    kubectl("delete", "ltj", "j", "--wait")
    kubectl.apply(durable(1))
    with Story(kubectl) as story:
        again = story.until(lambda m: m.trains)
    assert again.step >= again.status["checkpoint"]["restoredStep"] >= rest.step
    assert again.status["round"]["number"] == 1


def test_a_member_that_is_cut_off_writes_nothing(kubectl: Kubectl, installed: Cluster, leader: str) -> None:
    """Its node's network is cut while it can still reach the storage: everything written afterwards is the others'."""
    kubectl.apply(claim("checkpoints"), durable(2))
    with Story(kubectl) as story:
        until_saved(story)
        folder = installed.shared / kubectl.get("pvc", "checkpoints")["spec"]["volumeName"] / "j"
        node = installed.node(next(name for name in nodes_of(kubectl) if name != leader))
        off = time.monotonic()
        node.partition()
        try:
            decided = story.until(lambda m: m.round == 2, since=off)
            others = story.until(lambda m: m.round == 2 and m.size == 2 and m.trains, since=off)
            print(f"cut off: new round after {decided.at - off:.1f} s, next step after {others.at - off:.1f} s")
            later = story.until(
                lambda m: m.round == 2 and m.status["checkpoint"]["step"] > others.status["checkpoint"]["step"]
            )
        finally:
            node.heal()
        whole = story.until(lambda m: m.size == 3 and m.trains, seconds=120, since=later.at)
        assert whole.round == 3
    fences = sorted(folder.glob("fence-*.json"))
    assert json.loads(fences[1].read_text())["content"]["round"] == 2
    assert written_by_older(folder, fences[1]) == []


def written_by_older(folder: Path, fence: Path) -> list[str]:
    """Shards and manifests that an older round wrote after `fence` was set."""
    number, since = int(fence.stem.split("-")[1]), fence.stat().st_mtime
    late = []
    for file in folder.glob("step-*/*"):
        if file.name == "manifest.json":
            owner = int(json.loads(file.read_text())["content"]["fence"])
        else:
            owner = int(file.name.split("-")[1])
        if owner < number and file.stat().st_mtime > since:
            late.append(f"{file.parent.name}/{file.name}")
    return late


def no_step_is_done_twice(story: Story, status: dict[str, Any]) -> None:
    """What was shown only grew, and no round was lost."""
    steps = [moment.step for moment in story.moments]
    assert steps == sorted(steps)
    assert (status["restarts"], status.get("incidents", [])) == (0, [])
    assert status["ledger"].get("recompute", 0) == 0


def test_a_node_that_is_about_to_go_is_left(kubectl: Kubectl, installed: Cluster) -> None:
    """An autoscaler's taint: the member saves and leaves, its replacement waits for another node, and is added when
    there is one. A cordon moves nobody."""
    kubectl.apply(claim("checkpoints"), durable(2))
    with Story(kubectl) as story:
        until_saved(story)
        going, index = next(iter(nodes_of(kubectl).items()))
        kubectl("cordon", going)
        try:
            before = story.moments[-1].step
            story.until(lambda m: m.step > before + 5)
            assert not events(kubectl, "NodeLeaving")
            kubectl("taint", "node", going, "karpenter.sh/disrupted:NoSchedule")
            tainted = time.monotonic()
            left = story.until(lambda m: m.size == 2 and m.trains and m.status["state"] == "Running", since=tainted)
            print(f"tainted: two train on after {left.at - tainted:.1f} s")
            assert index not in [member["index"] for member in left.status["round"]["members"]]
            kubectl("wait", "pod", f"j-{index}-1", "--for=delete", "--timeout=60s")
            assert [said for said in events(kubectl, "NodeLeaving") if f"node {going} is leaving" in said]
            no_step_is_done_twice(story, left.status)
        finally:
            kubectl("uncordon", going)
            kubectl("taint", "node", going, "karpenter.sh/disrupted:NoSchedule-")
        back = story.until(lambda m: m.size == 3 and m.trains and m.status["state"] == "Running", since=left.at)
        no_step_is_done_twice(story, back.status)
        assert not back.status.get("leavingNodes")


def test_a_node_that_shuts_down_tells_its_containers_alone(kubectl: Kubectl, installed: Cluster) -> None:
    """SIGTERM without a deleted pod, as from a kubelet whose machine shuts down: all save, the others go on at once,
    and a replacement joins. No loss, no failure of the pod's."""
    kubectl.apply(claim("checkpoints"), durable(2))
    with Story(kubectl) as story:
        until_saved(story)
        told = time.monotonic()
        kubectl("exec", "j-1-1", "-c", "trainer", "--", "sh", "-c", "kill -TERM 1")
        left = story.until(lambda m: m.size == 2 and m.trains, since=told)
        print(f"told to end: two train on after {left.at - told:.1f} s")
        assert any("j-1-1 was told to end" in said for said in events(kubectl, "RoundEnding"))
        back = story.until(lambda m: m.size == 3 and m.trains and m.status["state"] == "Running", since=left.at)
        no_step_is_done_twice(story, back.status)
        assert not events(kubectl, "PodFailed")
        assert "lastFailure" not in back.status


def test_too_few_nodes_are_waited_for(kubectl: Kubectl, installed: Cluster, leader: str) -> None:
    """Two of three nodes go off: the job waits and says for whom; with one of them back it goes on where it was."""
    kubectl.apply(claim("checkpoints"), durable(2))
    with Story(kubectl) as story:
        saved = until_saved(story)
        off = [installed.node(name) for name in nodes_of(kubectl) if name != leader]
        for node in off:
            node.off()
        dark = time.monotonic()
        try:
            waits = story.until(lambda m: m.condition("Recovering").get("reason") == "BelowMinimum", since=dark)
            assert "1 of at least 2 members are ready" in waits.condition("Running")["message"]
            assert waits.status["state"] == "Recovering"
        finally:
            for node in off:
                node.on()
        back = story.until(lambda m: m.size >= 2 and m.trains, since=waits.at)
        never_at_the_beginning_again(story, saved)
    adds_up(back.status, "productive", "waiting")
    assert events(kubectl, "BelowMinimum")
