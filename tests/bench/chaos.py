"""`make chaos`: random faults from a seed, on jobs of this machine's processes and on a cluster's nodes.

Jobs run one after the other, every second one elastic, each with as many faults as its length has room for, until there
were enough of them. Each is held against one that was left alone: losses, model, lost steps, what is left behind. The
folder of one that went wrong stays, and its seed is printed: the campaign that begins with that seed begins with it.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import click
import pytest
from safetensors.torch import load_file

from devcluster import charts
from devcluster.chaos import SYSTEM
from devcluster.cluster import Cluster
from tests.bench.report import ROOT, Row, clean_up_on_sigterm, publish
from tests.support.disturbed import MEMBERS, PATIENCE, Result, chaos_spec, differences, disturbed, undisturbed
from tests.support.jobs import claim
from tests.support.kube import Kubectl

AT_MOST: Final = 8
"""Faults of one job."""
STEPS: Final = 2500
NODE_STEPS: Final = 1600
CLUSTER: Final = "chaos"
APART: Final = {
    "requiredDuringSchedulingIgnoredDuringExecution": [
        {
            "labelSelector": {"matchLabels": {"app.kubernetes.io/name": "llmtrain"}},
            "topologyKey": "kubernetes.io/hostname",
        }
    ]
}

Strike = Callable[[int, int, bool], Result]
"""A job of this seed under so many faults, elastic or not."""


@dataclass
class Tally:
    """What came of all jobs of one place."""

    faults: Counter[str] = field(default_factory=Counter)
    recoveries: list[tuple[float, str]] = field(default_factory=list)  # seconds, and what each followed
    lost: int = 0
    jobs: int = 0
    compared: int = 0
    wrongs: list[str] = field(default_factory=list)

    def add(self, seed: int, result: Result, alone: Result, *, elastic: bool) -> list[str]:
        """Take a job in; what went wrong with it."""
        wrongs = [*result.wrongs, *differences(alone, result, elastic=elastic)]
        self.jobs += 1
        self.faults.update(result.faults)
        self.compared += len(result.losses.keys() & alone.losses.keys())
        for trial in result.report["trials"]:
            told = f"{' and '.join(each['fault'] for each in trial['faults'])}, seed {seed}"
            for one in trial["incidents"]:
                self.lost += one.get("lostSteps") or 0
                if one.get("trainSeconds") is not None:
                    self.recoveries.append((one["trainSeconds"], told))
        self.wrongs += [f"seed {seed}: {wrong}" for wrong in wrongs]
        return wrongs

    def rows(self, where: str, wanted: int) -> list[Row]:
        """For the table."""
        done = self.faults.total()
        kinds = ", ".join(f"{count} {name}" for name, count in sorted(self.faults.items()))
        worst, followed = max(self.recoveries, default=(0.0, "none"))
        middle = statistics.median(seconds for seconds, _ in self.recoveries) if self.recoveries else 0.0
        told = "; ".join(self.wrongs[:3]) or f"{self.compared:,} losses of steps and {self.jobs} models compared"
        return [
            Row(f"faults, {where}", done, "", f">= {wanted}", done >= wanted, kinds),
            Row(f"jobs, {where}", self.jobs, "", "", None, f"all of {MEMBERS} members, every second one elastic"),
            Row(f"wrongs, {where}", len(self.wrongs), "", "0", not self.wrongs, told),
            Row(f"committed steps lost, {where}", self.lost, "", "0", not self.lost, ""),
            Row(f"fault -> next step, median, {where}", middle, "s", "", None, f"worst {worst:.1f} s: {followed}"),
        ]


def campaign(tally: Tally, seed: int, faults: int, alone: Result, strike: Strike, say: Callable[[str], None]) -> None:
    """Jobs until there were so many faults, or until as many jobs as faults did not suffice."""
    for number in range(faults):
        left = faults - tally.faults.total()
        if left <= 0:
            break
        elastic = bool((seed + number) % 2)
        try:
            result = strike(seed + number, min(left, AT_MOST), elastic)
        except (Exception, pytest.fail.Exception) as error:  # noqa: BLE001 - whatever it was, it is this job's to tell
            tally.jobs += 1
            tally.wrongs.append(f"seed {seed + number}: {type(error).__name__}: {error}")
            say(tally.wrongs[-1])
            continue
        wrongs = tally.add(seed + number, result, alone, elastic=elastic)
        say(f"seed {seed + number}: {', '.join(result.faults)}: {'; '.join(wrongs) or 'as undisturbed'}")


class Folders:
    """Where jobs run: a directory each, which stays if it went wrong."""

    def __init__(self) -> None:
        self._root = Path(tempfile.mkdtemp(prefix="llmtrain-chaos-", dir="/tmp"))

    def alone(self) -> Result:
        return undisturbed(self._new("alone"), STEPS)

    def strike(self, seed: int, faults: int, elastic: bool) -> Result:
        """See `Strike`."""
        folder = self._new(str(seed))
        result = disturbed(folder, STEPS, seed, faults, elastic=elastic)
        if not result.wrongs:
            shutil.rmtree(folder)
        return result

    def close(self, tally: Tally) -> None:
        """Only what went wrong is worth keeping."""
        if tally.wrongs:
            click.echo(f"kept: {self._root}", err=True)
        else:
            shutil.rmtree(self._root)

    def _new(self, name: str) -> Path:
        folder = self._root / name
        folder.mkdir()
        return folder


class Nodes:
    """Jobs on a cluster's nodes, one member each."""

    def __init__(self, cluster: Cluster) -> None:
        charts.install(cluster.kubeconfig, ROOT / "charts" / "llmtrain", "llmtrain", SYSTEM, charts.DEV_VALUES)
        self._cluster, self._kubectl = cluster, Kubectl(cluster.kubectl, cluster.kubeconfig)
        self._kubectl.apply(claim("models"))

    def alone(self) -> Result:
        """The job that is left alone."""
        return self._run("alone", dict, elastic=False)

    def strike(self, seed: int, faults: int, elastic: bool) -> Result:
        """See `Strike`."""
        name = f"j{seed}"
        words = ("--name", CLUSTER, "--faults", str(faults), "--seed", str(seed), "--patience", str(PATIENCE), "--json")
        command = [sys.executable, "-m", "devcluster", "chaos", name, *words]

        def struck() -> dict[str, Any]:
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=PATIENCE * faults, check=False)
            told: dict[str, Any] = json.loads(done.stdout)
            return told

        return self._run(name, struck, elastic=elastic)

    def _run(self, name: str, strike: Callable[[], dict[str, Any]], *, elastic: bool) -> Result:
        """A job from its beginning until nothing is left of it, whatever came of it."""
        self._apply(name, elastic=elastic)
        try:
            result = self._end(name, strike())
        finally:
            left = self._remove(name)
        return replace(result, wrongs=[*result.wrongs, *left])

    def _apply(self, name: str, *, elastic: bool) -> None:
        spec = chaos_spec(NODE_STEPS, elastic=elastic)
        data = spec["data"] | {"source": "/usr/lib/python3.11/json"}
        template = {"spec": {"affinity": {"podAntiAffinity": APART}}}
        spec["recovery"] |= {"avoidNodes": False}  # there are no others, and they are not to blame
        spec |= {"output": f"pvc://models/{name}", "data": data, "template": template}
        metadata = {"name": name}
        self._kubectl.apply(
            {"apiVersion": "llmtrain.io/v1alpha1", "kind": "LLMTrainJob", "metadata": metadata, "spec": spec}
        )

    def _end(self, name: str, report: dict[str, Any]) -> Result:
        self._kubectl.wait(f"ltj/{name}", "jsonpath={.status.completionTime}", int(PATIENCE))
        status = self._kubectl.job(name)
        wrongs = [wrong for trial in report.get("trials", ()) for wrong in trial["wrongs"]]
        wrongs += [] if status["state"] == "Complete" else [f"it is {status['state']}"]
        model = self._cluster.shared / self._kubectl.get("pvc", "models")["spec"]["volumeName"] / name
        facts, tensors = json.loads((model / "llmtrain.json").read_text()), load_file(model / "model.safetensors")
        return Result({}, facts, tensors, report, wrongs)

    def _remove(self, name: str) -> list[str]:
        """What is left behind although it should not be."""
        self._kubectl("delete", "ltj", name, timeout=120)
        self._kubectl("wait", "pod", "--all", "--for=delete", "--timeout=120s", timeout=130)
        there = {item["metadata"]["name"] for kind in ("service", "pdb") for item in self._kubectl.items(kind)}
        left = there - {"kubernetes"}
        return [f"left behind: {', '.join(sorted(left))}"] if left else []


@click.command()
@click.option("--seed", default=1, show_default=True, help="The first job's; the next one has the next.")
@click.option("--faults", default=200, show_default=True, help="On jobs of this machine's processes.")
@click.option("--node-faults", default=0, show_default=True, help="On a cluster's nodes.")
def main(seed: int, faults: int, node_faults: int) -> None:
    """Break jobs at random, and compare what comes of them."""

    clean_up_on_sigterm()

    def say(line: str) -> None:
        click.echo(line, err=True)

    rows: list[Row] = []
    try:
        if faults:
            folders, tally = Folders(), Tally()
            try:
                campaign(tally, seed, faults, folders.alone(), folders.strike, say)
            finally:
                folders.close(tally)
                rows += tally.rows("processes", faults)
        if node_faults:
            tally = Tally()
            try:
                with Cluster(CLUSTER, print, nodes=MEMBERS) as cluster:
                    nodes = Nodes(cluster)
                    campaign(tally, seed, node_faults, nodes.alone(), nodes.strike, say)
            finally:
                rows += tally.rows("nodes", node_faults)
    finally:  # a campaign of hours that is ended tells of what it has done
        publish("chaos", rows)
    sys.exit(0 if all(row.met is not False for row in rows) else 1)


if __name__ == "__main__":
    main()
