"""The chart's life while a job trains, and the connections that the job really makes under its policies."""

from __future__ import annotations

import json
import re
import subprocess
from typing import Any

from devcluster import charts, config
from devcluster.chaos import SYSTEM
from devcluster.cluster import Cluster
from tests.e2e.conftest import CHART
from tests.support.connections import connections
from tests.support.jobs import FOREVER, REQUESTS, job, members, until_training, workers
from tests.support.kube import Kubectl
from tests.support.policies import End, Network, Pod

RELEASE = "llmtrain"
CHANGED = charts.DEV_VALUES | {"logLevel": "debug", "podAnnotations": {"changed": "yes"}}


def operators(kubectl: Kubectl) -> set[str]:
    """UIDs of the operator's pods that are not on their way out."""
    pods = kubectl.items("pod", "app.kubernetes.io/component=operator")
    return {pod["metadata"]["uid"] for pod in pods if "deletionTimestamp" not in pod["metadata"]}


def logged_after(kubectl: Kubectl, step: int) -> int:
    """The first step beyond `step` that rank 0 logs: training goes on, whoever may be there to see it."""
    return _first_beyond(step, kubectl, r"step (\d+)/", "logs", "-f", "--since=1s", "j-0-1")


def followed_after(kubectl: Kubectl, step: int) -> int:
    """The first step beyond `step` that the job's status tells of: training goes on, and an operator follows it."""
    return _first_beyond(step, kubectl, r"(\d+)", "get", "ltj", "j", "-w", r'-o=jsonpath={.status.progress.step}{"\n"}')


def _first_beyond(step: int, kubectl: Kubectl, pattern: str, *words: str) -> int:
    command = [kubectl.program, "--kubeconfig", kubectl.kubeconfig, "-n", kubectl.namespace, *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            steps = (int(found[1]) for line in process.stdout if (found := re.search(pattern, line)))
            return next(each for each in steps if each > step)
        finally:
            process.terminate()


def state_of(kubectl: Kubectl, cluster: Cluster) -> dict[str, Any]:
    """What must not change: round, members, pods, and the very processes that train."""
    status, pods = kubectl.job("j"), members(kubectl)
    return {
        "rounds": status["rounds"],
        "members": [member["uid"] for member in status["round"]["members"]],
        "pods": sorted(pod["metadata"]["uid"] for pod in pods.values()),
        "workers": {node: workers(cluster, node) for node in sorted(p["spec"]["nodeName"] for p in pods.values())},
    }


def test_upgrade_rollback_and_removal_while_a_job_trains(kubectl: Kubectl, installed: Cluster) -> None:
    """Each replaces or removes the operator's pods; the same processes train on in the same round, step by step.

    Uninstalled, the chart leaves the job training, and installed again it takes the job up where it is; the job and its
    pods go when the CRD goes.
    """
    system = Kubectl(installed.kubectl, installed.kubeconfig, SYSTEM)
    kubectl.apply(job(steps=FOREVER, template=REQUESTS))
    until_training(kubectl)
    before, pods = state_of(kubectl, installed), operators(system)
    try:
        charts.upgrade(installed.kubeconfig, CHART, RELEASE, SYSTEM, CHANGED)
        upgraded = operators(system)
        assert upgraded
        assert not upgraded & pods
        followed_after(kubectl, kubectl.job("j")["progress"]["step"])
        assert state_of(kubectl, installed) == before

        charts.rollback(installed.kubeconfig, RELEASE, SYSTEM)
        assert not operators(system) & (upgraded | pods)
        followed_after(kubectl, kubectl.job("j")["progress"]["step"])
        assert state_of(kubectl, installed) == before

        charts.uninstall(installed.kubeconfig, RELEASE, SYSTEM)
        assert not operators(system)
        seen = kubectl.job("j")["progress"]["step"]
        step = logged_after(kubectl, seen)
        assert kubectl.job("j")["progress"]["step"] == seen, "somebody follows the job although nobody is left"
        assert state_of(kubectl, installed) == before

        charts.install(installed.kubeconfig, CHART, RELEASE, SYSTEM, charts.DEV_VALUES)
        followed_after(kubectl, step)
        assert state_of(kubectl, installed) == before

        charts.uninstall(installed.kubeconfig, RELEASE, SYSTEM)
        kubectl("delete", "crd", "llmtrainjobs.llmtrain.io", "--wait=true")
        kubectl("wait", "pod", "--all", "--for=delete", "--timeout=60s", timeout=70)
    finally:  # for the tests after this one
        charts.uninstall(installed.kubeconfig, RELEASE, SYSTEM)
        charts.install(installed.kubeconfig, CHART, RELEASE, SYSTEM, charts.DEV_VALUES)


def everywhere(kubectl: Kubectl, kind: str) -> list[dict[str, Any]]:
    """All objects of a kind in all namespaces."""
    listed: list[dict[str, Any]] = json.loads(kubectl("get", kind, "-A", "-o", "json"))["items"]
    return listed


def test_the_policies_allow_every_connection_that_a_job_makes(kubectl: Kubectl, installed: Cluster) -> None:
    """The devcluster does not enforce policies; what would be enforced is held against the kernel's own tables."""
    kubectl.apply(job(steps=FOREVER, members=3))
    until_training(kubectl)
    logged_after(kubectl, 0)
    listed = everywhere(kubectl, "pod")
    pods = {pod["status"]["podIP"]: Pod.of(pod) for pod in listed if pod["status"].get("podIP")}
    services = {
        service["spec"]["clusterIP"]: service
        for service in everywhere(kubectl, "service")
        if service["spec"].get("selector") and service["spec"]["clusterIP"] != "None"
    }
    labels = {
        n["metadata"]["name"]: n["metadata"]["labels"] for n in json.loads(kubectl("get", "ns", "-o", "json"))["items"]
    }
    network = Network(tuple(everywhere(kubectl, "networkpolicy")), labels)
    nodes = {node.ip for node in installed.nodes}

    def end(address: str) -> End:
        """The pod at an address or behind a Service's, else the address."""
        service = services.get(address)
        if service is None:
            return pods.get(address, address)
        wanted = service["spec"]["selector"].items()
        return next(
            p for p in pods.values() if p.namespace == service["metadata"]["namespace"] and wanted <= p.labels.items()
        )

    seen = set().union(*(connections(node.run) for node in installed.nodes))
    ours = {c for c in seen if (c.source in pods or c.destination in pods) and c.source not in nodes}
    refused = {c: why for c in ours if (why := network.refusal(end(c.source), end(c.destination), c.port))}
    assert refused == {}
    member = next(pod for pod in pods.values() if pod.namespace == kubectl.namespace)
    assert not network.refusal(member, config.CONTROL_PLANE_IP, 53, "UDP"), "name service, which leaves no connection"
    own = {ip for ip, pod in pods.items() if pod.namespace == kubectl.namespace}
    kinds = {(_kind(c.source, own, end), _kind(c.destination, own, end)) for c in ours}
    assert kinds >= {("member", "member"), ("member", "operator"), ("operator", "outside")}


def _kind(address: str, members_at: set[str], end: Any) -> str:
    if address in members_at:
        return "member"
    return "operator" if isinstance(end(address), Pod) else "outside"
