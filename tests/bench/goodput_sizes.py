"""The part `sizes` of `make bench-goodput`: what a node that comes, and a job of higher priority, do to a job that
chooses its own size, on a real cluster of three nodes. Its step is a rest divided by the workers, as in
`tests/e2e/test_autoscale.py`, so that more members help although all nodes share this machine's cores.

Times are those at which `kubectl get --watch` showed something. A node counts as Ready from the moment that its own
condition says so, as the API server wrote it; the machines share one clock.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from datetime import datetime
from statistics import median
from typing import Any, Final

from devcluster import charts
from devcluster.chaos import SYSTEM
from devcluster.cluster import Cluster, ClusterNode
from tests.bench.report import ROOT, Row
from tests.e2e.test_autoscale import CODE, EAGER, FOREVER, URGENT, last, measured, reckoned, restful
from tests.support.kube import Kubectl
from tests.support.leadership import await_leader
from tests.support.story import Story

HOW: Final = "make bench-goodput"
WITHIN: Final = 10.0
"""Seconds from a node's being Ready to the first step of the round with it, as asked."""
_RANGE: Final = {"min": 1, "max": 3}
_DEVICES: Final = {"nvidia.com/gpu": 2}


@contextlib.contextmanager
def site() -> Iterator[tuple[Cluster, Kubectl]]:
    """A cluster of its own with the chart installed."""
    with Cluster("bench-sizes", print, nodes=3, accelerators=_DEVICES) as cluster:
        charts.install(cluster.kubeconfig, ROOT / "charts" / "llmtrain", "llmtrain", SYSTEM, charts.DEV_VALUES)
        yield cluster, Kubectl(cluster.kubectl, cluster.kubeconfig)


def bystander(cluster: Cluster, kubectl: Kubectl) -> ClusterNode:
    """A node without the operator that leads."""
    system = Kubectl(kubectl.program, kubectl.kubeconfig, SYSTEM)
    leading = system.get("pod", await_leader(system))["spec"]["nodeName"]
    return next(node for node in cluster.nodes if node.name != leading)


def ready_since(kubectl: Kubectl, node: str) -> float:
    """Seconds since 1970 at which the node became Ready, to the second, as conditions are."""
    conditions = kubectl.get("node", node)["status"]["conditions"]
    found = next(each for each in conditions if each["type"] == "Ready" and each["status"] == "True")
    return datetime.fromisoformat(found["lastTransitionTime"]).timestamp()


def growth(cluster: Cluster, kubectl: Kubectl) -> dict[str, float]:
    """A node goes off, a job trains on the other two, the node comes back. Seconds from its being Ready."""
    node = bystander(cluster, kubectl)
    node.off()
    kubectl("wait", f"node/{node.name}", "--for=condition=Ready=Unknown", "--timeout=90s", timeout=100)
    kubectl.apply(CODE, restful("j", FOREVER, nodes=_RANGE, autoscale=EAGER))
    try:
        with Story(kubectl) as story:
            two = story.until(lambda m: m.size == 2 and m.trains and measured(m, 2), seconds=180)
            offset = time.time() - time.monotonic()
            node.on()
            ready = ready_since(kubectl, node.name) - offset
            wanted = story.until(lambda m: m.status["targetNodes"] == 3, since=two.at)
            grown = story.until(lambda m: m.size == 3 and m.trains, since=wanted.at)
            known = story.until(reckoned, since=grown.at)
    finally:
        node.on()
        _gone(kubectl, "j")
    change: dict[str, Any] = last(known)
    return {
        "wanted": wanted.at - ready,
        "step": grown.at - ready,
        "pause": change["pauseSeconds"],
        "predicted": change["predictedSpeedup"],
        "achieved": change["achievedSpeedup"],
    }


def sharing(kubectl: Kubectl) -> dict[str, float]:
    """A second job of higher priority comes, is through, and is gone: seconds, and rounds that either lost."""
    kubectl.apply(CODE, URGENT, restful("j", FOREVER, whole=True, nodes=_RANGE, autoscale=EAGER))
    try:
        with Story(kubectl) as story:
            story.until(lambda m: m.size == 3 and m.trains and measured(m, 3), seconds=180)
            kubectl.apply(restful("urgent", 25, whole=True, scheduling={"priorityClassName": "urgent"}))
            asked = time.monotonic()
            with Story(kubectl, "urgent") as other:
                yields = story.until(lambda m: m.size == 2 and m.trains, since=asked)
                trains = other.until(lambda m: m.trains)
                over = other.until(lambda m: m.status.get("state") == "Complete", seconds=240)
            again = story.until(lambda m: m.size == 3 and m.trains, seconds=240, since=over.at)
        lost = again.status["restarts"] + over.status["restarts"]
    finally:
        _gone(kubectl, "j")
        _gone(kubectl, "urgent")
    return {
        "yields": yields.at - asked,
        "trains": trains.at - asked,
        "again": again.at - over.at,
        "lost": float(lost),
    }


def _gone(kubectl: Kubectl, name: str) -> None:
    kubectl("delete", "ltj", name, "--ignore-not-found", "--wait", timeout=130)
    kubectl("wait", "pod", "-l", f"llmtrain.io/job={name}", "--for=delete", "--timeout=120s", timeout=130)


def growth_rows(grown: list[dict[str, float]]) -> list[Row]:
    """The figures of growth, as medians."""
    typical = {name: median(each[name] for each in grown) for name in grown[0]}
    every = ", ".join(f"{each['step']:.1f}" for each in grown)
    times = f"median of {every} s; {HOW}"
    asked, kept = f"<= {WITHIN:.0f} s", typical["step"] <= WITHIN
    shape = "2 to 3 members; a step is a rest divided by the workers"
    return [
        Row("node Ready to the bigger round's first step", typical["step"], "s", asked, kept, times),
        Row("node Ready to the decision", typical["wanted"], "s", "", None, HOW),
        Row("pause of the change of size", typical["pause"], "s", "", None, HOW),
        Row("predicted speed with it", typical["predicted"], "x", "", None, shape),
        Row("achieved speed with it", typical["achieved"], "x", "", None, "the same, measured after the change"),
    ]


def sharing_rows(shared: dict[str, float]) -> list[Row]:
    """The figures of a job of higher priority."""
    return [
        Row("higher priority: the first job trains without it", shared["yields"], "s", "", None, HOW),
        Row("higher priority: the second job's first step", shared["trains"], "s", "", None, HOW),
        Row("second job over: the first has its node again", shared["again"], "s", "", None, HOW),
        Row("rounds that either job lost", shared["lost"], "", "0", shared["lost"] == 0, HOW),
    ]


def run(times: int = 3) -> Iterator[Row]:
    """All of it, growth several times; rows as they are known."""
    with site() as (cluster, kubectl):
        yield from growth_rows([growth(cluster, kubectl) for _ in range(times)])
        yield from sharing_rows(sharing(kubectl))
