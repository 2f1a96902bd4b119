"""The product as a user has it: a cluster with three nodes, the chart installed, kubectl."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from devcluster import charts, images
from devcluster.chaos import SYSTEM
from devcluster.cluster import Cluster
from tests.support.kube import Kubectl, KubectlError

CHART = Path(__file__).parents[2] / "charts" / "llmtrain"
_NUMBERS = itertools.count(1)


@pytest.fixture(scope="session")
def installed(cluster: Cluster) -> Iterator[Cluster]:
    """The cluster with the chart installed; what the operator logged is shown if the session fails."""
    charts.install(cluster.kubeconfig, CHART, "llmtrain", SYSTEM, charts.DEV_VALUES)
    yield cluster
    charts.uninstall(cluster.kubeconfig, "llmtrain", SYSTEM)


@pytest.fixture(scope="session")
def users_image(cluster: Cluster) -> str:
    """An image with torch and nothing of ours: the trainer's without its last layer, which is our code."""
    ours = next(image for image in images.images() if image.name == images.image_name("trainer"))
    rootfs = {**ours.config["rootfs"], "diff_ids": list(ours.diff_ids[:-1])}
    theirs = replace(ours, name="localhost/users-own:dev", config={**ours.config, "rootfs": rootfs, "history": []})
    for node in cluster.nodes:
        images.adopt(node.machine, [theirs])
    return theirs.name


@pytest.fixture
def kubectl(installed: Cluster, request: pytest.FixtureRequest) -> Iterator[Kubectl]:
    """kubectl in a namespace of the test's own, which goes away with everything in it."""
    base = Kubectl(installed.kubectl, installed.kubeconfig)
    words = "".join(c if c.isalnum() else "-" for c in request.node.name.lower())[:40].strip("-")
    name = f"t{next(_NUMBERS)}-{words}"
    base("create", "namespace", name)
    own = Kubectl(installed.kubectl, installed.kubeconfig, name)
    yield own
    report = getattr(request.node, "report", None)
    if report is not None and report.failed:
        _show(base, own)
    base("delete", "namespace", name, "--wait=false")
    # Pods of a job that is still in the namespace would compete with the next test for the machine.
    own("wait", "pod", "--all", "--for=delete", "--timeout=100s", timeout=110)


def _show(base: Kubectl, own: Kubectl) -> None:
    for who, words in (
        (own, ("get", "pods", "-o", "wide")),
        (own, ("get", "ltj", "-o", "yaml")),
        (own, ("get", "events", "--sort-by=.lastTimestamp")),
        (own, ("logs", "-l", "app.kubernetes.io/name=llmtrain", "--tail=60", "--prefix")),
        (base, ("-n", SYSTEM, "logs", "-l", "app.kubernetes.io/name=llmtrain", "--all-containers", "--tail=80")),
    ):
        try:
            print(f"--- kubectl {' '.join(words)}\n{who(*words)}")
        except KubectlError as error:
            print(f"--- kubectl {' '.join(words)}: {error}")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item):
    """Let fixtures know whether the test failed."""
    report = yield
    if report.when == "call":
        item.report = report
    return report


@pytest.fixture
def leader(installed: Cluster) -> str:
    """The node of the operator that leads; it stays on, because this is not about the operator's own faults."""
    system = Kubectl(installed.kubectl, installed.kubeconfig, SYSTEM)
    holder = system.get("lease", "llmtrain")["spec"]["holderIdentity"]
    node: str = next(
        pod["spec"]["nodeName"] for pod in system.items("pod") if holder.startswith(pod["metadata"]["name"])
    )
    return node
