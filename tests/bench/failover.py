"""`make bench-failover`: the leading operator is lost again and again while a job trains on a real cluster.

Every process of the leader's pod is killed without a word and the pod is deleted. Measured from there until the
standby holds the Lease, and until the job's status shows progress that the standby wrote, for which its coordinator
must have the agents, and it their reports. Then a few orderly ends, as in an upgrade, and nodes that are switched off
under the leader, so that neither agents nor the API server hear of its end. The job's members are elsewhere.
"""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from devcluster import charts
from devcluster.chaos import SYSTEM
from devcluster.cluster import Cluster
from tests.bench.operator import Row, show
from tests.support.kube import Kubectl
from tests.support.leadership import await_leader, kill

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "build" / "bench" / "failover.json"
JOB = "/apis/llmtrain.io/v1alpha1/namespaces/default/llmtrainjobs/j"
MEMBERS = 2
THEIR_NODE = "n1"
SPEC = {
    "nodes": {"min": MEMBERS},
    "model": {"architecture": {"hiddenSize": 32, "layers": 1, "heads": 2}},
    "data": {"source": "/usr/lib/python3.11/json", "include": ["*.py"], "sequenceLength": 64},
    "training": {"maxSteps": 1_000_000, "globalBatchSize": 4, "precision": "fp32", "optimizer": {"lr": 0.001}},
    "template": {"spec": {"nodeSelector": {"kubernetes.io/hostname": THEIR_NODE}}},
}


class Bench:
    """A cluster with the chart and a job that trains for ever."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._system = Kubectl(cluster.kubectl, cluster.kubeconfig, SYSTEM)

    def prepare(self) -> None:
        charts.install(self._cluster.kubeconfig, ROOT / "charts" / "llmtrain", "llmtrain", SYSTEM, charts.DEV_VALUES)
        metadata = {"name": "j", "namespace": "default"}
        body = {"apiVersion": "llmtrain.io/v1alpha1", "kind": "LLMTrainJob", "metadata": metadata, "spec": SPEC}
        self._cluster.api.create(JOB.rpartition("/")[0], body)
        self._cluster.wait(lambda: self.status()["progress"]["step"] > 0, 120, "the job trains")

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self._cluster.api.get(JOB).get("status") or {}
        return {"progress": {"step": 0}} | found

    def lose(self, how: Callable[[str], object]) -> tuple[float, float]:
        """Seconds from the leader's end until another leads, and until it shows progress."""
        self._system("rollout", "status", "deploy/llmtrain", "--timeout=120s", timeout=130)
        old = await_leader(self._system)
        began = time.monotonic()
        how(old)
        await_leader(self._system, but=old)
        leads = time.monotonic() - began
        step = self.status()["progress"]["step"]
        while self.status()["progress"]["step"] <= step:
            if time.monotonic() - began > 60:
                raise SystemExit(f"nobody follows the job a minute after {old} was lost")
            time.sleep(0.02)
        return leads, time.monotonic() - began

    def kill(self, pod: str) -> None:
        kill(self._cluster, self._system, pod)

    def end(self, pod: str) -> None:
        self._system("delete", "pod", pod, "--wait=false")

    def lose_node(self) -> tuple[float, float]:
        """As `lose`; the node is back on afterwards."""
        while (node := self._node(await_leader(self._system))) == THEIR_NODE:
            self.lose(self.end)
        try:
            return self.lose(lambda _: self._cluster.node(node).off())
        finally:
            self._cluster.node(node).on()

    def _node(self, pod: str) -> str:
        return str(self._system.get("pod", pod)["spec"]["nodeName"])


def measure(bench: Bench, kills: int, ends: int, nodes: int) -> list[Row]:
    """The rows of the table."""
    bench.prepare()
    killed = [bench.lose(bench.kill) for _ in range(kills)]
    ended = [bench.lose(bench.end) for _ in range(ends)]
    switched_off = [bench.lose_node() for _ in range(nodes)]
    status = bench.status()
    undisturbed = (status["rounds"], status["restarts"]) == (1, 0)
    leads, acts = [taken[0] for taken in killed], [taken[1] for taken in killed]
    orderly, without_power = [taken[1] for taken in ended], [taken[1] for taken in switched_off]
    middle, worst = statistics.median(acts), max(acts)
    return [
        Row("leader killed -> the next acts, median", middle, "s", "<= 10", middle <= 10, _each(acts)),
        Row("the same, worst", worst, "s", "<= 15", worst <= 15, ""),
        Row(
            "leader killed -> the next leads, median",
            statistics.median(leads),
            "s",
            "",
            None,
            f"worst {max(leads):.1f} s",
        ),
        Row("leader told to end -> the next acts, median", statistics.median(orderly), "s", "", None, _each(orderly)),
        Row("leader's node off -> the next acts, worst", max(without_power), "s", "", None, _each(without_power)),
        Row("rounds in all that time", status["rounds"], "", "1", undisturbed, f"{status['restarts']} restarts"),
    ]


def _each(seconds: list[float]) -> str:
    return ", ".join(f"{taken:.1f}" for taken in seconds)


@click.command()
@click.option("--kills", default=6, help="Leaders that are killed.")
@click.option("--ends", default=3, help="Leaders that are told to end.")
@click.option("--nodes", default=2, help="Nodes that are switched off under the leader.")
def main(kills: int, ends: int, nodes: int) -> None:
    """Measure how long it takes until another replica acts."""
    with Cluster("bench-failover", print, nodes=3) as cluster:
        rows = measure(Bench(cluster), kills, ends, nodes)
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps({"rows": [vars(row) for row in rows]}, indent=2) + "\n")
    show(rows)


if __name__ == "__main__":
    main()
