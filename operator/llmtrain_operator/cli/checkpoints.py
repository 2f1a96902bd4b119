"""`llmtrain checkpoints`: look at a job's durable checkpoints, prove them, export one as a model.

The storage is reached from where the job's members reach it: a short-lived pod with their claims, service account and
references to secrets runs the trainer image's own tool; its output is passed on, and so is its exit code.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from llmtrain_operator.api import JobSpec
from llmtrain_operator.api.validation import parse
from llmtrain_operator.cli.access import Access, job_options, run
from llmtrain_operator.cli.completion import job_argument
from llmtrain_operator.cli.foresight import job_view
from llmtrain_operator.cli.status import find
from llmtrain_operator.cli.toolpod import exit_code, image_of, tool_pod, trouble_of
from llmtrain_operator.contract import names
from llmtrain_operator.local.folder import root
from llmtrain_operator.ports import Rejected, Unavailable

if TYPE_CHECKING:
    from llmtrain_operator.cluster.user import UserCluster

_INTERVAL: Final = 0.5
_TOOL: Final = "llmtrain_trainer.checkpoint"


@dataclass(frozen=True, slots=True)
class Where:
    """Which checkpoints: a job's, or those of a storage that can be reached from here."""

    name: str | None
    storage: str | None
    image: str | None
    access: Access


@click.group()
def checkpoints() -> None:
    """Look at a job's durable checkpoints, prove them, export one as a model."""


def _where(command: Callable[..., None]) -> Callable[..., None]:
    """The argument NAME and the options that say which checkpoints, given to the command as one argument `where`."""

    def called(
        *args: Any, name: str | None, storage: str | None, image: str | None, access: Access, **rest: Any
    ) -> None:
        if (name is None) == (storage is None):
            raise click.UsageError("give either NAME or --storage")
        command(*args, where=Where(name, storage, image, access), **rest)

    called.__name__, called.__doc__ = command.__name__, command.__doc__
    called.__click_params__ = list(getattr(command, "__click_params__", ()))  # type: ignore[attr-defined]
    decorated: Any = job_options(called)
    decorated = click.option("--image", help="Trainer image of the pod. Default: the members'.")(decorated)
    decorated = click.option("--storage", metavar="URI", help="Not a job's: file:///path or s3://bucket/prefix.")(
        decorated
    )
    result: Callable[..., None] = job_argument(required=False)(decorated)
    return result


@checkpoints.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_where
def ls(*, as_json: bool, where: Where) -> None:
    """List the checkpoints: step, age, size, workers, and whether they are whole as far as that shows."""
    sys.exit(work(where, "ls", ["--json"] if as_json else []))


@checkpoints.command()
@click.option("--step", type=click.IntRange(min=0), help="Only this one.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_where
def verify(*, step: int | None, as_json: bool, where: Where) -> None:
    """Read every byte of the checkpoints and name what is damaged. Exit code 1 if anything is."""
    options = ["--json"] if as_json else []
    sys.exit(work(where, "verify", options if step is None else [*options, "--step", str(step)]))


def work(where: Where, verb: str, options: Sequence[str]) -> int:
    """Run the tool where the storage is; its exit code."""
    if where.storage is not None:
        return _here([verb, where.storage, *options], Path())
    if where.access.local:
        job = run(_job(where))
        return _here([verb, storage_of(job), *options], root(os.environ) / "volumes")
    return run(_there(where, verb, options))


def storage_of(job: dict[str, Any]) -> str:
    """Where the job's checkpoints are. Raises `click.ClickException` if it has none."""
    durable = (job["spec"].get("checkpoint") or {}).get("durable")
    if not durable:
        name = job["metadata"]["name"]
        raise click.ClickException(f"{name} takes no durable checkpoints: it has no spec.checkpoint.durable")
    return str(durable["storage"])


def _here(arguments: Sequence[str], volumes: Path) -> int:
    if importlib.util.find_spec("llmtrain_trainer") is None or importlib.util.find_spec("obstore") is None:
        raise click.ClickException("the trainer is not installed here: pip install 'llmtrain[trainer]'")
    environment = {names.ENV_VOLUMES: str(volumes)} if volumes.parts else {}
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "PYTHONPATH": paths, **environment}
    return subprocess.run([sys.executable, "-m", _TOOL, *arguments], env=environment, check=False).returncode


async def _job(where: Where) -> dict[str, Any]:
    async with where.access.open() as source:
        return await find(source, where.access.resolved_namespace(), where.name or "")


async def _there(where: Where, verb: str, options: Sequence[str]) -> int:
    namespace = where.access.resolved_namespace()
    async with where.access.open_cluster() as cluster:
        job = await find(cluster, namespace, where.name or "")
        spec, problems = parse(job["metadata"]["name"], job["spec"])
        if spec is None:
            raise click.ClickException(
                f"the spec of {where.name} is invalid: {problems[0].path}: {problems[0].message}"
            )
        pods = await cluster.evidence.pods(namespace, job["metadata"]["name"])
        pull = [each["name"] for pod in pods[:1] for each in pod["spec"].get("imagePullSecrets") or ()]
        image = where.image or await _image(cluster, spec, pods)
        pod = tool_pod(job_view(job), spec, secrets.token_hex(3), image, [verb, storage_of(job), *options], pull)
        return await _run(cluster, pod)


async def _image(cluster: UserCluster, spec: JobSpec, pods: list[dict[str, Any]]) -> str:
    deployments = []
    with contextlib.suppress(Rejected):  # most users may not look there
        deployments = await cluster.evidence.deployments()
    if image := image_of(spec, pods, deployments):
        return image
    raise click.ClickException(
        "no pod of the job is left to take the trainer's image from, and the operator's deployment may not be read: "
        "name the image with --image"
    )


async def _run(cluster: UserCluster, pod: dict[str, Any]) -> int:
    """Create the pod, print what it prints, delete it."""
    namespace, name = pod["metadata"]["namespace"], pod["metadata"]["name"]
    try:
        await cluster.create_pod(pod)
    except Rejected as error:
        raise click.ClickException(f"the pod that would read the checkpoints was refused: {error}") from error
    try:
        await _begun(cluster, namespace, name)
        async for _, line in cluster.log(namespace, name, follow=True):
            click.echo(line)
        return await _ended(cluster, namespace, name)
    finally:
        with contextlib.suppress(Rejected, Unavailable):  # it goes by itself, an hour later or with the job
            await cluster.delete_pod(namespace, name)


async def _begun(cluster: UserCluster, namespace: str, name: str) -> None:
    said = ""
    while True:
        pod = await cluster.pod(namespace, name)
        if pod["status"].get("phase") not in (None, "Pending"):
            return
        if trouble := trouble_of(pod):
            raise click.ClickException(f"the pod {name} cannot start: {trouble}")
        unplaced = [c for c in pod["status"].get("conditions") or () if c["type"] == "PodScheduled"]
        message = next((c.get("message", "") for c in unplaced if c["status"] == "False"), "")
        if message and message != said:
            click.echo(f"waiting for a node for {name}: {message}", err=True)
            said = message
        await asyncio.sleep(_INTERVAL)


async def _ended(cluster: UserCluster, namespace: str, name: str) -> int:
    """The tool's exit code, once the kubelet has told it."""
    while True:
        pod = await cluster.pod(namespace, name)
        code = exit_code(pod)
        if code is not None:
            return code
        if pod["status"].get("phase") in ("Failed", "Succeeded"):
            raise click.ClickException(f"the pod {name} was ended: {pod['status'].get('message', 'no reason given')}")
        await asyncio.sleep(_INTERVAL)
