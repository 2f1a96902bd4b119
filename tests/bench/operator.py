"""`make bench-operator`: a real operator process under churn, on a real API server with simulated nodes and agents.

Jobs arrive five in two seconds, train, lose workers and pods, complete, and are replaced by new ones. Measured are
the operator's own histogram of passes and its memory. Nothing fails on a slow machine; the table says what was met.

Must be run with `python -P`: next to this file, `import operator` would find it instead of the standard library's.
"""

import asyncio
import contextlib
import json
import os
import random
import resource
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import click
import yaml
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.table import Table

from devcluster.cluster import Cluster
from llmtrain_operator.cluster.client import Client, NotFound, connect
from llmtrain_operator.cluster.reflector import Reflector
from llmtrain_operator.cluster.resources import BY_KIND, JOBS, Resource, split_key
from llmtrain_operator.contract import names
from llmtrain_operator.ports import Unavailable
from tests.bench.fleet import Fleet, TimedClient

ROOT = Path(__file__).parents[2]
NAMESPACE = "bench"
CRDS = Resource("CustomResourceDefinition", "apiextensions.k8s.io/v1", "customresourcedefinitions", namespaced=False)
RESULT = ROOT / "build" / "bench" / "operator.json"
LOG = RESULT.with_suffix(".log")
MEMBERS = 2
ARRIVALS_PER_SECOND = 2.5
POD_LOSS_EVERY = 2.0
"""Seconds."""


@dataclass(frozen=True)
class Row:
    what: str
    value: float
    unit: str
    target: str
    met: bool | None
    detail: str


class Churn:
    """Keeps `wanted` jobs alive until told to stop, deleting each that has ended."""

    def __init__(self, client: Client, fleet: Fleet, wanted: int, steps: int) -> None:
        self._client, self._fleet, self._wanted, self._steps = client, fleet, wanted, steps
        self._count = 0
        self._states: Reflector[str] = Reflector(client, JOBS, _state, self._changed, namespace=NAMESPACE)
        self._swept: set[str] = set()
        self.completed: list[str] = []
        self.failed: list[str] = []

    async def run(self, seconds: float) -> None:
        watching = asyncio.create_task(self._states.run())
        await self._states.synced.wait()
        while self._count < self._wanted:
            await self._tick()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            await self._tick()
            await self._lose_a_pod()
        watching.cancel()

    async def drain(self, seconds: float) -> list[str]:
        """Let the rest finish. Returns the jobs that did not."""
        watching = asyncio.create_task(self._states.run())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._alive():
                    await self._sweep()
                    await asyncio.sleep(0.2)
        watching.cancel()
        return self._alive()

    def _changed(self, key: str, old: str | None, new: str | None) -> None:
        if new in ("Complete", "Failed") and old != new:
            (self.completed if new == "Complete" else self.failed).append(key)

    def _alive(self) -> list[str]:
        return [key for key in self._states if self._states.get(key) not in ("Complete", "Failed")]

    async def _tick(self) -> None:
        await asyncio.sleep(1 / ARRIVALS_PER_SECOND)
        await self._sweep()
        if len(self._alive()) < self._wanted:
            name = f"job-{self._count:05d}"
            self._count += 1
            self._fleet.measured.created[f"{NAMESPACE}/{name}"] = time.monotonic()
            await self._client.request("create", JOBS, NAMESPACE, body=_job(name, self._steps))

    async def _sweep(self) -> None:
        """Delete the jobs that ended."""
        for key in set(self.completed + self.failed) - self._swept:
            self._swept.add(key)
            with contextlib.suppress(NotFound):
                await self._client.request("delete", JOBS, *split_key(key))

    async def _lose_a_pod(self) -> None:
        pods = [pod for pod in self._fleet.pods() if pod.ready and not pod.deleting]
        if pods and random.random() < 1 / ARRIVALS_PER_SECOND / POD_LOSS_EVERY:
            await self._fleet.lose(random.choice(pods))


def _state(raw: Mapping[str, Any]) -> str:
    return str((raw.get("status") or {}).get("state", ""))


def _job(name: str, steps: int) -> dict[str, Any]:
    spec = {
        "nodes": {"min": MEMBERS, "max": MEMBERS},
        "model": {"preset": "gpt-tiny"},
        "data": {"source": "/data"},
        "training": {"maxSteps": steps},
        "recovery": {"maxRestarts": 100},
    }
    return {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": name}, "spec": spec}


@contextlib.asynccontextmanager
async def operator_process(kubeconfig: Path, folder: Path) -> AsyncIterator[tuple[int, int]]:
    """A real operator process; gives its pid and HTTP port, and ends it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (folder / "ca.crt").write_text("not checked by anybody here")
    command = [sys.executable, "-P", "-m", "llmtrain_operator.main", f"--kubeconfig={kubeconfig}"]
    command += [f"--control-socket={folder / 'control.sock'}", "--coordinator-url=wss://coordinator:7443"]
    command += [f"--coordinator-ca={folder / 'ca.crt'}", "--trainer-image=trainer", "--operator-image=operator"]
    command += [f"--http-port={port}", "--log-level=WARNING", "--lease=default/bench-operator"]
    environment = os.environ | {"KUBECONFIG": str(kubeconfig)}
    LOG.parent.mkdir(parents=True, exist_ok=True)
    with LOG.open("wb") as log:
        process = await asyncio.create_subprocess_exec(*command, env=environment, stdout=log, stderr=log)
        try:
            async with asyncio.timeout(60):
                while not await _ready(port):
                    if process.returncode is not None:
                        raise SystemExit(f"the operator ended:\n{LOG.read_text()[-2000:]}")
                    await asyncio.sleep(0.1)
            yield process.pid, port
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            await process.wait()


async def _ready(port: int) -> bool:
    try:
        async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{port}/readyz") as answer:
            return answer.status == 200
    except aiohttp.ClientError:
        return False


async def _scrape(port: int) -> dict[str, list[Any]]:
    async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{port}/metrics") as answer:
        families = text_string_to_metric_families(await answer.text())
        return {sample.name: family.samples for family in families for sample in family.samples}


def bucket_quantile(samples: list[Any], q: float) -> tuple[float, int]:
    """The q-quantile in seconds as Prometheus' histogram_quantile has it, over all labels, and the number observed."""
    totals: dict[float, float] = {}
    for sample in samples:
        if sample.name.endswith("_bucket"):
            bound = float(sample.labels["le"])
            totals[bound] = totals.get(bound, 0.0) + sample.value
    below, before = 0.0, 0.0
    count = totals[float("inf")]
    for bound, total in sorted(totals.items()):
        if total >= q * count and count:
            if bound == float("inf"):
                return below, int(count)
            return below + (bound - below) * (q * count - before) / (total - before or 1), int(count)
        below, before = bound, total
    return 0.0, 0


def memory(pid: int, field: str) -> float:
    """VmRSS or VmHWM (its peak) of a process, in MB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024 / 1e6


def cpu_seconds(pid: int) -> float:
    """User and system time of a process."""
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


def percentile(values: list[float], q: float) -> float:
    return sorted(values)[min(len(values) - 1, int(q * len(values)))] if values else float("nan")


async def _prepare(client: Client) -> None:
    await client.request("create", CRDS, body=yaml.safe_load((ROOT / "crds" / "llmtrainjobs.yaml").read_text()))
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    await client.request("create", BY_KIND["Namespace"], body=namespace)
    async with asyncio.timeout(20):
        while not await _serves_jobs(client):  # noqa: ASYNC110 - the server's pace
            await asyncio.sleep(0.1)


async def _serves_jobs(client: Client) -> bool:
    try:
        await client.request("list", JOBS, NAMESPACE)
    except (NotFound, Unavailable):
        return False
    return True


async def measure(kubeconfig: Path, folder: Path, jobs: int, seconds: float, steps: int) -> list[Row]:
    """One run; `folder` takes sockets and logs."""
    async with connect(kubeconfig) as plain:
        client = TimedClient(plain._api)
        await _prepare(client)
        fleet = Fleet(client, NAMESPACE, folder / "control.sock", steps)
        playing = asyncio.create_task(fleet.run())
        async with operator_process(kubeconfig, folder) as (pid, port):
            churn = Churn(client, fleet, jobs, steps)
            began = time.monotonic()
            await churn.run(seconds)
            left = await churn.drain(steps * 3 + 60)
            if playing.done():
                playing.result()
            took = time.monotonic() - began
            metrics = await _scrape(port)
            peak, now = memory(pid, "VmHWM"), memory(pid, "VmRSS")
            cpu = cpu_seconds(pid) / took
        playing.cancel()
        await asyncio.wait([playing])
    return _rows(churn, fleet, client.seconds, left, took, metrics, peak, now, cpu)


def _rows(
    churn: Churn,
    fleet: Fleet,
    answers: list[float],
    left: list[str],
    took: float,
    metrics: dict[str, list[Any]],
    peak: float,
    now: float,
    cpu: float,
) -> list[Row]:
    p50, _ = bucket_quantile(metrics["llmtrain_reconcile_duration_seconds_bucket"], 0.5)
    p99, passes = bucket_quantile(metrics["llmtrain_reconcile_duration_seconds_bucket"], 0.99)
    errors = sum(
        s.value
        for s in metrics["llmtrain_reconcile_duration_seconds_count"]
        if s.name.endswith("_count") and s.labels["result"] == "error"
    )
    wait, _ = bucket_quantile(metrics["llmtrain_queue_wait_seconds_bucket"], 0.99)
    calls = sum(s.value for s in metrics["llmtrain_kubernetes_requests_total"] if s.name.endswith("_total"))
    first, following = fleet.measured.first_round, fleet.measured.next_round
    ended = len(churn.completed) + len(churn.failed)
    return [
        Row("reconcile p99", p99 * 1e3, "ms", "< 100", p99 < 0.1, f"{passes} passes, p50 {p50 * 1e3:.1f} ms"),
        Row("operator memory, peak RSS", peak, "MB", "< 120", peak < 120, f"{now:.0f} MB at the end"),
        Row(
            "jobs that completed",
            100 * len(churn.completed) / max(1, ended + len(left)),
            "%",
            "100",
            not left and not churn.failed,
            f"{len(churn.completed)} complete, {len(churn.failed)} failed, {len(left)} unfinished",
        ),
        Row("churn", ended / took, "jobs/s", "", None, f"{MEMBERS} members each, over ramp-up, churn and end"),
        Row("passes that raised", errors, "", "0", errors == 0, f"see {LOG.relative_to(ROOT)}" if errors else ""),
        Row("wait for a worker p99", wait * 1e3, "ms", "", None, "from due to begun"),
        Row(
            "job created -> first round p50",
            percentile(first, 0.5),
            "s",
            "",
            None,
            f"p99 {percentile(first, 0.99):.1f} s",
        ),
        Row(
            "loss -> next round p50",
            percentile(following, 0.5),
            "s",
            "",
            None,
            f"p99 {percentile(following, 0.99):.1f} s, {len(following)} lost workers or pods",
        ),
        Row(
            "an answer of the API server p50",
            percentile(answers, 0.5) * 1e3,
            "ms",
            "",
            None,
            f"p99 {percentile(answers, 0.99) * 1e3:.0f} ms, as the simulator saw it",
        ),
        Row("requests to the API server", calls / took, "/s", "", None, f"{calls:.0f} in {took:.0f} s"),
        Row("operator CPU", cpu, "cores", "", None, f"machine load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"),
    ]


def show(rows: list[Row]) -> None:
    table = Table("what", "value", "unit", "target", "met", "detail")
    for row in rows:
        met = "" if row.met is None else "yes" if row.met else "NO"
        table.add_row(row.what, f"{row.value:.1f}", row.unit, row.target, met, row.detail)
    Console(width=140).print(table)


@click.command()
@click.option("--jobs", default=200, help="Jobs alive at a time.")
@click.option("--seconds", default=60.0, help="Churn after all have arrived.")
@click.option("--steps", default=80, help="Seconds that a job trains.")
@click.option("--seed", default=1)
def main(jobs: int, seconds: float, steps: int, seed: int) -> None:
    """Measure the operator under churn."""
    random.seed(seed)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536), hard))
    with Cluster("bench-operator", print, nodes=0) as cluster, tempfile.TemporaryDirectory() as folder:
        rows = asyncio.run(measure(cluster.kubeconfig, Path(folder), jobs, seconds, steps))
    RESULT.write_text(json.dumps({"rows": [vars(row) for row in rows]}, indent=2) + "\n")
    show(rows)


if __name__ == "__main__":
    main()
