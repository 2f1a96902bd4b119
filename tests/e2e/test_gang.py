"""The cluster's own gang scheduling: a job whose members do not all fit takes nothing."""

from __future__ import annotations

from typing import Any

from devcluster.cluster import Cluster
from tests.support.jobs import job
from tests.support.kube import Kubectl

WHOLE_NODE = {"spec": {"containers": [{"name": "trainer", "resources": {"limits": {"nvidia.com/gpu": "2"}}}]}}


def nodes_of(kubectl: Kubectl, name: str) -> list[str]:
    """Where the job's pods are; empty strings for those that wait."""
    pods = kubectl.items("pod", f"llmtrain.io/job={name}")
    return sorted(pod["spec"].get("nodeName", "") for pod in pods)


def until_it_says(kubectl: Kubectl, name: str, reason: str) -> str:
    """Wait for condition Scheduled; its message."""
    kubectl.wait(f"ltj/{name}", f"jsonpath={{.status.conditions[?(@.type=='Scheduled')].reason}}={reason}")
    message: str = kubectl.condition(name, "Scheduled")["message"]
    return message


def test_a_gang_that_does_not_fit_takes_no_node_and_starts_when_it_does(kubectl: Kubectl, installed: Cluster) -> None:
    """Three members of a node each, two nodes free: without a gang two are taken for nothing, with one none is."""
    whole: dict[str, Any] = {"template": WHOLE_NODE}
    kubectl("cordon", "n3")
    try:
        kubectl.apply(job("greedy", members=3, **whole))
        assert "2 of 3 members have a node" in until_it_says(kubectl, "greedy", "Unschedulable")
        assert nodes_of(kubectl, "greedy") == ["", "n1", "n2"]
        kubectl("delete", "ltj", "greedy")
        kubectl("wait", "pod", "--all", "--for=delete", "--timeout=60s")
        kubectl.apply(job(members=3, steps=5, scheduling={"gang": "native"}, **whole))
        assert "0 of 3 members have a node" in until_it_says(kubectl, "j", "Unschedulable")
        assert nodes_of(kubectl, "j") == ["", "", ""]
    finally:
        kubectl("uncordon", "n3")
    kubectl.wait("ltj/j", "condition=Scheduled")
    assert nodes_of(kubectl, "j") == ["n1", "n2", "n3"]
    kubectl.wait("ltj/j", "condition=Complete")
