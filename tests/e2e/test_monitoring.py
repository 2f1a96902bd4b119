"""The boards and the alerts on a real run: a real Prometheus scrapes operator and members of a job on real kubelets."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from dashboards import monitored, shipped
from dashboards.boards import BOARDS
from dashboards.panel import Panel
from dashboards.prometheus import Prometheus, running
from dashboards.targets import followed
from devcluster.chaos import SYSTEM
from devcluster.cluster import Cluster
from tests.support.jobs import FOREVER, workers
from tests.support.kube import Kubectl
from tests.support.panels import complaints

ROOT = Path(__file__).parents[2]
PATIENCE = 120
"""Seconds until what has happened shows in every panel."""
FEW_STEPS = 40
OURS = "app.kubernetes.io/name=llmtrain"


@pytest.fixture
def prometheus(installed: Cluster, kubectl: Kubectl, tmp_path: Path) -> Iterator[Prometheus]:
    """In the network of the cluster, where pods can be reached, with the alerts of the chart."""
    rules = [ROOT / shipped.PLAIN_RULES]
    places = kubectl, replace(kubectl, namespace=SYSTEM)
    place = {"prefix": installed.enter("cp"), "environment": installed.environment()}
    with (
        followed(tmp_path, lambda: [pod for each in places for pod in each.items("pod", OURS)]) as scrape,
        running(tmp_path, [scrape], rules=rules, **place) as server,
    ):
        yield server


def test_every_panel_shows_a_real_run_with_a_fault(
    prometheus: Prometheus, kubectl: Kubectl, installed: Cluster
) -> None:
    """A worker is killed; then each panel has a series for each query, with values that can be true, and what they say
    is what kubectl says. A fault that was recovered from wakes nobody."""
    which = f'{{namespace="{kubectl.namespace}",job="{monitored.JOB}"}}'
    values = {"namespace": kubectl.namespace, "job": monitored.JOB, "__rate_interval": "30s"}
    kubectl.apply(monitored.claim(), monitored.job(FOREVER))
    prometheus.until(f"count(llmtrain_member_step{which} >= {FEW_STEPS}) == 3", 240)
    prometheus.until(f"llmtrain_job_checkpoint_step{which}", PATIENCE)
    node = kubectl.items("pod", f"llmtrain.io/job={monitored.JOB}")[-1]["spec"]["nodeName"]
    installed.node(node).run(["kill", "-9", *map(str, workers(installed, node))])
    kubectl.wait(f"ltj/{monitored.JOB}", "jsonpath={.status.incidents[*].outcome}=Recovered", PATIENCE)
    prometheus.until(f"sum(increase(llmtrain_member_worker_restarts_total{which}[5m])) > 0", PATIENCE)
    assert _wrong(prometheus, [panel for board in BOARDS for panel in board.panels], values) == []
    _agrees(prometheus, kubectl, which)
    assert [alert.labels["alertname"] for alert in prometheus.query('ALERTS{alertstate="firing"}')] == []


def _wrong(server: Prometheus, panels: Sequence[Panel], values: dict[str, str]) -> list[str]:
    """What is wrong for good: some panels show something only at the next evaluation, or checkpoint."""
    deadline = time.monotonic() + PATIENCE
    while True:
        panels = [panel for panel in panels if complaints(server, panel, values, may_be_empty=bool(panel.needs))]
        if not panels or time.monotonic() > deadline:
            return [
                each for panel in panels for each in complaints(server, panel, values, may_be_empty=bool(panel.needs))
            ]


def _agrees(server: Prometheus, kubectl: Kubectl, which: str) -> None:
    status = kubectl.job(monitored.JOB)
    incident = status["incidents"][-1]
    [whole] = server.query(f"sum(llmtrain_job_recovery_seconds{which})")
    assert whole.newest == pytest.approx(incident["trainSeconds"], abs=0.01)
    reasons = {each.labels["reason"]: each.newest for each in server.query(f"llmtrain_job_incidents_total{which} > 0")}
    assert reasons == {incident["reason"]: 1}
    [step] = server.query(f"llmtrain_job_step{which}")
    assert step.newest <= kubectl.job(monitored.JOB)["progress"]["step"]
    assert step.newest > incident["committedStep"]
