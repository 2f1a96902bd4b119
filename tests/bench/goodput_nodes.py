"""The nodes' side of `make bench-goodput`: a job of three under a worker's death each so many times its recovery.

What a recovery takes is measured first, in a job of its own: the whole cost of each incident by the ledger, which
`agreement` has held against the trainer's log. The model is one whose step takes most of a second here, as steps of
models that anybody trains do at least: of a step of milliseconds a snapshot after each is a large part.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from devcluster import charts
from devcluster.chaos import SYSTEM
from devcluster.cluster import Cluster
from tests.bench.recovery_steps import undisturbed
from tests.bench.report import ROOT
from tests.support.jobs import APART, FOREVER, job, nodes_of, workers
from tests.support.kube import Kubectl

MEMBERS: Final = 3
FACTORS: Final = (100, 40)
"""How many recoveries would fit in between two faults."""
_FIRST: Final = 5
"""Faults that a recovery is measured by."""
_GONE: Final = 120
_MODEL: Final = {"architecture": {"hiddenSize": 128, "layers": 4, "heads": 4}}
_DATA: Final = {"source": "/usr/lib/python3.11/json", "include": ["*.py"], "sequenceLength": 128}
_TRAINING: Final = {"maxSteps": FOREVER, "globalBatchSize": 24, "precision": "fp32", "optimizer": {"lr": 1e-3}}


@dataclass(frozen=True)
class Life:
    """A job's: its `status` at the end, and after its first step; how many faults it had."""

    status: dict[str, Any]
    begun: dict[str, float]
    faults: int


class Site:
    """The cluster, with one job after the other."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._kubectl = Kubectl(cluster.kubectl, cluster.kubeconfig)

    def recovery(self) -> float:
        """Seconds that a worker's death costs, in the median."""
        with self._job():
            for number in range(_FIRST):
                self._settle()
                self._kill(number)
            self._settle()
            costs = [sum(each["badput"].values()) for each in self._status()["incidents"] if each.get("badput")]
        return statistics.median(costs)

    def life(self, seconds: float, every: float) -> Life:
        """A job's first so many seconds, struck after each `every` of them."""
        with self._job():
            began = time.monotonic()
            begun: dict[str, float] = self._settle()["ledger"]
            faults = 0
            while (left := seconds - (time.monotonic() - began)) > 0:
                time.sleep(min(every, left))
                if left > every:
                    self._kill(faults)
                    faults += 1
            return Life(self._status(), begun, faults)

    @contextlib.contextmanager
    def _job(self) -> Iterator[None]:
        spread = {"spec": {"affinity": {"podAntiAffinity": APART}}}
        again = {"avoidNodes": False, "maxRestarts": 100_000}
        spec = {"nodes": {"min": 1, "max": MEMBERS}, "template": spread, "recovery": again}
        self._kubectl.apply(job(**spec, model=_MODEL, data=_DATA, training=_TRAINING))
        try:
            yield
        finally:
            self._kubectl("delete", "ltj", "j", f"--timeout={_GONE}s", timeout=_GONE + 10)
            self._kubectl(
                "wait", "pod", "-l", "llmtrain.io/job=j", "--for=delete", f"--timeout={_GONE}s", timeout=_GONE + 10
            )

    def _settle(self) -> dict[str, Any]:
        undisturbed(self._status, MEMBERS)
        return self._status()

    def _kill(self, number: int) -> None:
        """A member's worker dies, each time another member's."""
        nodes = sorted(nodes_of(self._kubectl))
        node = nodes[number % len(nodes)]
        pids = workers(self._cluster, node)
        self._cluster.node(node).run(["kill", "-9", *map(str, pids)])

    def _status(self) -> dict[str, Any]:
        found: dict[str, Any] = self._kubectl.get("ltj", "j").get("status") or {}
        return found


@contextlib.contextmanager
def site() -> Iterator[Site]:
    """A cluster of its own, with the chart installed."""
    with Cluster("bench-goodput", print, nodes=MEMBERS) as cluster:
        charts.install(cluster.kubeconfig, ROOT / "charts" / "llmtrain", "llmtrain", SYSTEM, charts.DEV_VALUES)
        yield Site(cluster)
