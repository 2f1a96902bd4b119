"""`llmtrain support-bundle`: everything that someone who is asked for help needs to see of a job, in one file."""

from __future__ import annotations

import asyncio
import datetime
import importlib.metadata
import io
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from rich.console import Console

from llmtrain_operator.cli import view
from llmtrain_operator.cli.access import Access, cluster_options, run
from llmtrain_operator.cli.archive import Archive
from llmtrain_operator.cli.completion import job_argument
from llmtrain_operator.cli.explain import explanation
from llmtrain_operator.cli.report import report
from llmtrain_operator.cli.status import PLAIN_WIDTH, find
from llmtrain_operator.contract import names
from llmtrain_operator.ports import Rejected

if TYPE_CHECKING:
    from llmtrain_operator.cluster.user import UserCluster

_CHART: Final = "helm.sh/chart"
_NODE_FACTS: Final = ("kubeletVersion", "containerRuntimeVersion", "kernelVersion", "osImage", "architecture")


@click.command("support-bundle")
@job_argument()
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Default: NAME-support-TIME.tar.gz."
)
@click.option("--tail", type=click.IntRange(min=1), default=5000, show_default=True, help="Lines of each log.")
@click.option("--operator-namespace", metavar="NAME", help="Where the operator runs. Default: looked for everywhere.")
@cluster_options
def support_bundle(
    name: str, *, output: Path | None, tail: int, operator_namespace: str | None, access: Access
) -> None:
    """Pack a job's objects, events and logs, the operator's logs and a summary of the cluster into one file.

    Secrets are never read, and what looks like one is taken out; the command says what is in the file.
    """
    now = time.time()
    when = datetime.datetime.fromtimestamp(now, datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
    namespace = access.resolved_namespace()
    archive = run(_collect(access, namespace, name, tail, operator_namespace or ""))
    folder = f"{name}-support-{when}"
    target = output or Path(f"{folder}.tar.gz")
    try:
        target.write_bytes(archive.packed(folder, f"{namespace}/{name}", version(), when, now))
    except OSError as error:
        raise click.ClickException(f"{target} cannot be written: {error.strerror}; --output names another") from error
    for line in archive.contents():
        click.echo(line)
    click.echo(f"\n{target}: look into it before you pass it on (README.txt says what was taken out)")


async def _collect(access: Access, namespace: str, name: str, tail: int, operator: str) -> Archive:
    archive = Archive()
    async with access.open_cluster() as cluster:
        job = await find(cluster, namespace, name)
        archive.objects("job.yaml", "the job", job)
        await _story(archive, cluster, job)
        await _members(archive, cluster, job, tail)
        await _operator(archive, cluster, operator, tail)
        await _surroundings(archive, cluster, namespace)
    return archive


async def _story(archive: Archive, cluster: UserCluster, job: dict[str, Any]) -> None:
    """What `status`, `events` and `explain` show."""
    metadata = job["metadata"]
    pods = await archive.try_for("pods", cluster.pods(metadata["namespace"], metadata["name"])) or []
    found = await archive.try_for("events", cluster.events(metadata["namespace"], metadata["uid"])) or []
    of_pods = cluster.pod_events(metadata["namespace"], {pod.uid for pod in pods})
    found += await archive.try_for("the pods' events", of_pods) or []
    archive.objects("events.yaml", "events about the job and its pods", found)
    try:
        page = view.page(report(job, pods, found), time.time(), bar=False)
    except ValueError as error:
        archive.text("status.txt", "why this version cannot show the status", str(error))
        return
    console = Console(file=io.StringIO(), width=PLAIN_WIDTH, markup=False, highlight=False, emoji=False)
    console.print(page)
    assert isinstance(console.file, io.StringIO)
    archive.text("status.txt", "what `llmtrain status` shows", console.file.getvalue())
    archive.text("explain.txt", "what the operator would do next", "\n".join(explanation(job, pods, None, time.time())))


async def _members(archive: Archive, cluster: UserCluster, job: dict[str, Any], tail: int) -> None:
    namespace = job["metadata"]["namespace"]
    pods = await archive.try_for("pods", cluster.evidence.pods(namespace, job["metadata"]["name"])) or []
    archive.objects("pods.yaml", "the members' pods", pods)
    await asyncio.gather(*(_logs(archive, cluster, pod, "logs", tail) for pod in pods))
    if claims := await archive.try_for("claims", cluster.evidence.claims(namespace)):
        archive.objects("claims.yaml", "the namespace's volume claims", claims)


async def _logs(archive: Archive, cluster: UserCluster, pod: Mapping[str, Any], folder: str, tail: int) -> None:
    """The logs of all containers that have begun, also those before a restart."""
    namespace, name = pod["metadata"]["namespace"], pod["metadata"]["name"]
    for status in pod.get("status", {}).get("containerStatuses") or ():
        container = status["name"]
        if "waiting" in (status.get("state") or {}) and not status.get("restartCount"):
            continue
        for previous in (False, True) if status.get("restartCount") else (False,):
            label = f"{name}-{container}{'-previous' if previous else ''}"
            source = cluster.evidence.log(namespace, name, container, tail=tail, previous=previous)
            if (content := await archive.try_for(f"log of {label}", source)) is not None:
                archive.text(f"{folder}/{label}.log", f"the last {tail} lines", content.decode(errors="replace"))


async def _operator(archive: Archive, cluster: UserCluster, namespace: str, tail: int) -> None:
    deployments = await archive.try_for("the operator", _found(cluster, namespace))
    for deployment in deployments or ():
        metadata = deployment["metadata"]
        archive.objects(f"operator/{metadata['name']}.yaml", _chart(metadata), deployment)
        where = f"pods of {metadata['name']}"
        pods = await archive.try_for(where, cluster.evidence.operator_pods(metadata["namespace"])) or []
        archive.objects(f"operator/{metadata['name']}-pods.yaml", "the operator's pods", pods)
        await asyncio.gather(*(_logs(archive, cluster, pod, "operator/logs", tail) for pod in pods))


async def _found(cluster: UserCluster, namespace: str) -> list[dict[str, Any]]:
    try:
        deployments = await cluster.evidence.deployments(namespace)
    except Rejected as error:
        raise Rejected(f"{error}; --operator-namespace names the one that you may look into") from error
    if not deployments:
        raise Rejected(f"there is none in {namespace or 'any namespace'}")
    return deployments


async def _surroundings(archive: Archive, cluster: UserCluster, namespace: str) -> None:
    if nodes := await archive.try_for("nodes", cluster.evidence.nodes()):
        archive.objects("nodes.yaml", "a summary of the nodes", [node_summary(node) for node in nodes])
    crd = await archive.try_for("the CRD", cluster.evidence.crd())
    if crd:
        archive.objects("crd.yaml", "which version of the CRD is installed", crd_summary(crd))
    versions = {"llmtrain": version(), "api": names.API_VERSION, "namespace": namespace}
    archive.objects("versions.yaml", "versions of this command", versions)


def node_summary(node: Mapping[str, Any]) -> dict[str, Any]:
    """What matters of a node to a training job: no addresses, no images."""
    status = node.get("status", {})
    return {
        "name": node["metadata"]["name"],
        "labels": node["metadata"].get("labels") or {},
        "taints": node.get("spec", {}).get("taints") or [],
        "unschedulable": bool(node.get("spec", {}).get("unschedulable")),
        "allocatable": status.get("allocatable") or {},
        "conditions": {each["type"]: each["status"] for each in status.get("conditions") or ()},
        **{fact: status.get("nodeInfo", {}).get(fact) for fact in _NODE_FACTS},
    }


def crd_summary(crd: Mapping[str, Any]) -> dict[str, Any]:
    """Its versions and where it came from, without the schema."""
    metadata = crd["metadata"]
    return {
        "labels": metadata.get("labels") or {},
        "annotations": metadata.get("annotations") or {},
        "generation": metadata.get("generation"),
        "storedVersions": crd.get("status", {}).get("storedVersions"),
        "versions": [{key: each[key] for key in ("name", "served", "storage")} for each in crd["spec"]["versions"]],
    }


def _chart(metadata: Mapping[str, Any]) -> str:
    chart = (metadata.get("labels") or {}).get(_CHART, "no chart")
    return f"the operator's deployment in {metadata['namespace']}, from {chart}"


def version() -> str:
    """The installed version of this project."""
    try:
        return importlib.metadata.version("llmtrain")
    except importlib.metadata.PackageNotFoundError:  # run from a source tree
        return "unknown"
