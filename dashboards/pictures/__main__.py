"""`python -m dashboards.pictures`: run a job on a cluster of its own, kill a worker, and draw what the boards show.

The pictures are in docs/pictures/; everything else is removed at the end.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from dashboards import monitored
from dashboards.pictures import take
from dashboards.prometheus import Prometheus, running
from dashboards.targets import followed
from devcluster import charts
from devcluster.cluster import Cluster
from devcluster.errors import DevclusterError

ROOT: Final = Path(__file__).parents[2]
CHART: Final = ROOT / "charts" / "llmtrain"
SYSTEM: Final = "llmtrain-system"
_STEPS: Final = 100_000
_CALM_SECONDS: Final = 60
"""How long the job trains before the fault, and after it."""
_PATIENCE: Final = 300.0
_WHICH: Final = f'{{namespace="default",job="{monitored.JOB}"}}'


def main() -> int:
    """Exit status 1 with the reason if something does not come about."""
    cluster = Cluster("pictures", say=say, nodes=3)
    try:
        cluster.up(ephemeral=True)
        charts.install(cluster.kubeconfig, CHART, "llmtrain", SYSTEM, charts.DEV_VALUES)
        with tempfile.TemporaryDirectory() as directory:
            _take(cluster, Path(directory))
    finally:
        cluster.down()
    return 0


def say(line: str) -> None:
    """Progress for a person."""
    print(line, file=sys.stderr, flush=True)


def _take(cluster: Cluster, directory: Path) -> None:
    place = cluster.enter("cp"), cluster.environment()
    with (
        followed(directory, lambda: _pods(cluster)) as scrape,
        running(directory, [scrape], prefix=place[0], environment=place[1]) as server,
    ):
        start = time.time()
        say("a job of three members begins")
        _kubectl(cluster, "apply", "-f", "-", stdin=[monitored.claim(), monitored.job(_STEPS)])
        _until_trained(server, incidents=0)
        say("a worker is killed")
        _kill_a_worker(cluster)
        _until_trained(server, incidents=1)
        run = take.Run(
            {"namespace": "default", "job": monitored.JOB, "__rate_interval": "20s"},
            start,
            time.time(),
            "gpt-tiny on three nodes of this machine's embedded cluster; a worker was killed (SIGKILL) in the middle.",
        )
        for file in take.write(server, run, ROOT / "docs" / "pictures"):
            say(f"{file.relative_to(ROOT)}: {file.stat().st_size / 1024:.0f} KiB")


def _pods(cluster: Cluster) -> list[dict[str, Any]]:
    told = _kubectl(cluster, "get", "pods", "-A", "-l", "app.kubernetes.io/name=llmtrain", "-o", "json")
    pods: list[dict[str, Any]] = json.loads(told)["items"]
    return pods


def _until_trained(server: Prometheus, incidents: int) -> None:
    """A stretch of time in which all three members have trained, after so many incidents."""
    trains = f"(count(llmtrain_member_step{_WHICH} > 0) == 3) and on() {_incidents(incidents)}"
    server.until(f"count_over_time(({trains})[{_CALM_SECONDS}s:3s]) >= {_CALM_SECONDS // 3 - 4}", _PATIENCE)


def _incidents(least: int) -> str:
    counted = f"sum(llmtrain_job_incidents_total{_WHICH})"
    return f"(({counted} or on() vector(0)) >= {least})"


def _kill_a_worker(cluster: Cluster) -> None:
    pods = _kubectl(cluster, "get", "pods", "-l", f"llmtrain.io/job={monitored.JOB}", "-o", "name").split()
    _kubectl(cluster, "exec", pods[-1], "--", "python3", "-m", "llmtrain_trainer.chaos", "kill-worker")


def _kubectl(cluster: Cluster, *words: str, stdin: list[dict[str, Any]] | None = None) -> str:
    command = [str(cluster.kubectl), "--kubeconfig", str(cluster.kubeconfig), "-n", "default", *words]
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": stdin}) if stdin else None
    done = subprocess.run(command, capture_output=True, text=True, input=text, check=False, timeout=120)
    if done.returncode:
        raise DevclusterError(f"kubectl {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
