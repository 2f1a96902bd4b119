"""`llmtrain checkpoints`: look at a job's checkpoints, prove and remove them, export one.

Those in memory are worked on in the members (`memory.py`). The storage of durable ones is reached from where the job's
members reach it: a short-lived pod with their claims, service account and references to secrets runs the trainer
image's own tool; its output is passed on, and so is its exit code.
"""

from __future__ import annotations

import asyncio
import contextlib
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
from llmtrain_operator.cli import memory as snapshots
from llmtrain_operator.cli.access import Access, job_options, run
from llmtrain_operator.cli.completion import job_argument
from llmtrain_operator.cli.members import trainer_here
from llmtrain_operator.cli.status import find
from llmtrain_operator.cli.toolpod import MEMORY, Tool, exit_code, image_of, tool_pod, trouble_of
from llmtrain_operator.contract import uris
from llmtrain_operator.local.folder import root
from llmtrain_operator.ports import Rejected, Unavailable
from llmtrain_operator.state import JobView

if TYPE_CHECKING:
    from llmtrain_operator.cluster.user import UserCluster

_INTERVAL: Final = 0.5
_TOOL: Final = "llmtrain_trainer.checkpoint"
_DURABLE: Final = "durable"
_MEMORY: Final = "memory"


@dataclass(frozen=True, slots=True)
class Where:
    """Which checkpoints: a job's, or those of a storage that can be reached from here.

    `tier`: "durable", or "memory" for the snapshots that the job's members have in their memory.
    """

    name: str | None
    storage: str | None
    image: str | None
    access: Access
    tier: str = _DURABLE

    @property
    def in_memory(self) -> str | None:
        """The job whose snapshots in memory are meant; None: durable checkpoints are."""
        return self.name if self.tier == _MEMORY else None


@click.group()
def checkpoints() -> None:
    """Look at a job's checkpoints, prove and remove them, export one.

    Durable ones, as a model; with --tier memory the snapshots in its members' memory, as a durable checkpoint.
    """


def _where(command: Callable[..., None]) -> Callable[..., None]:
    """The argument NAME and the options that say which checkpoints, given to the command as one argument `where`."""

    def called(
        *args: Any, name: str | None, storage: str | None, image: str | None, tier: str, access: Access, **rest: Any
    ) -> None:
        if (name is None) == (storage is None):
            raise click.UsageError("give either NAME or --storage")
        if tier == _MEMORY and (storage or image):
            raise click.UsageError("--tier memory is in a job's members: it goes with neither --storage nor --image")
        command(*args, where=Where(name, storage, image, access, tier), **rest)

    called.__name__, called.__doc__ = command.__name__, command.__doc__
    called.__click_params__ = list(getattr(command, "__click_params__", ()))  # type: ignore[attr-defined]
    decorated: Any = job_options(called)
    tiers = click.Choice([_DURABLE, _MEMORY])
    decorated = click.option("--tier", type=tiers, default=_DURABLE, show_default=True, help="Where they lie.")(
        decorated
    )
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
    if where.in_memory:
        sys.exit(run(snapshots.look(where.access, where.in_memory, "ls", None, as_json=as_json)))
    sys.exit(work(where, "ls", ["--json"] if as_json else []))


@checkpoints.command()
@click.option("--step", type=click.IntRange(min=0), help="Only this one.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_where
def verify(*, step: int | None, as_json: bool, where: Where) -> None:
    """Read every byte of the checkpoints and name what is damaged. Exit code 1 if anything is."""
    if where.in_memory:
        sys.exit(run(snapshots.look(where.access, where.in_memory, "verify", step, as_json=as_json)))
    options = ["--json"] if as_json else []
    sys.exit(work(where, "verify", options if step is None else [*options, "--step", str(step)]))


@checkpoints.command()
@click.option("--step", type=click.IntRange(min=0), required=True, help="Which one.")
@click.option("--force", is_flag=True, help="Even if no valid durable checkpoint is left.")
@_where
def rm(*, step: int, force: bool, where: Where) -> None:
    """Remove a checkpoint, or in memory all snapshots of its step."""
    if where.in_memory:
        sys.exit(run(snapshots.remove(where.access, where.in_memory, step)))
    sys.exit(work(where, "rm", ["--step", str(step), *(["--force"] if force else [])]))


@checkpoints.command()
@click.option("--to", metavar="PLACE", required=True, help="pvc://claim/path; without a cluster also a directory.")
@click.option("--step", type=click.IntRange(min=0), help="Which one. Default: the newest valid.")
@click.option("--dtype", type=click.Choice(["fp32", "bf16", "fp16"]), help="Default: as it was trained.")
@click.option("--tokenizer", metavar="PLACE", help="Where it lies now. Default: where the job had it.")
@click.option("--memory", metavar="QUANTITY", help=f"For the whole model, in a pod. Default: {MEMORY}.")
@click.option("--force", is_flag=True, help="From memory: even if workers may be saving there.")
@_where
def export(*, to: str, step: int | None, memory: str | None, force: bool, where: Where, **model: str | None) -> None:
    """Write a checkpoint's model as a Hugging Face directory, with its tokenizer.

    With --tier memory: write the newest snapshots that are complete as a durable checkpoint to the storage PLACE
    (pvc:// of a claim that the members have, s3:// or file://), from which a job restores.
    """
    if where.in_memory:
        if memory or any(model.values()):
            raise click.UsageError("--tier memory writes a checkpoint, no model: no --dtype, --tokenizer or --memory")
        sys.exit(run(snapshots.export(where.access, where.in_memory, to, step, force=force)))
    if force:
        raise click.UsageError("--force goes with --tier memory")
    given = {"--step": step} | {f"--{name}": value for name, value in model.items()}
    options = [word for name, value in given.items() if value is not None for word in (name, str(value))]
    sys.exit(work(where, "export", options, Target(to, memory or MEMORY)))


@dataclass(frozen=True, slots=True)
class Target:
    """Where an exported model goes, and how much memory it takes on its way."""

    place: str
    memory: str


def work(where: Where, verb: str, options: Sequence[str], target: Target | None = None) -> int:
    """Run the tool where the storage is; its exit code."""
    if where.storage is None and not where.access.local:
        return run(_there(where, verb, options, target))
    volumes = root(os.environ) / "volumes"
    storage = where.storage or storage_of(run(_job(where)))
    try:
        to = [uris.local_path(target.place, str(volumes))] if target else []
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    return _here([verb, storage, *to, *options], volumes)


def storage_of(job: dict[str, Any]) -> str:
    """Where the job's checkpoints are. Raises `click.ClickException` if it has none."""
    durable = (job["spec"].get("checkpoint") or {}).get("durable")
    if not durable:
        name = job["metadata"]["name"]
        raise click.ClickException(f"{name} takes no durable checkpoints: it has no spec.checkpoint.durable")
    return str(durable["storage"])


def _here(arguments: Sequence[str], volumes: Path) -> int:
    environment = trainer_here(volumes)
    return subprocess.run([sys.executable, "-m", _TOOL, *arguments], env=environment, check=False).returncode


async def _job(where: Where) -> dict[str, Any]:
    async with where.access.open() as source:
        return await find(source, where.access.resolved_namespace(), where.name or "")


async def _there(where: Where, verb: str, options: Sequence[str], target: Target | None) -> int:
    namespace = where.access.resolved_namespace()
    to = [path_in_pod(target.place)] if target else []
    async with where.access.open_cluster() as cluster:
        job = await find(cluster, namespace, where.name or "")
        storage = storage_of(job)
        spec, problems = parse(job["metadata"]["name"], job["spec"])
        if spec is None:
            raise click.ClickException(
                f"the spec of {where.name} is invalid: {problems[0].path}: {problems[0].message}"
            )
        pods = await cluster.evidence.pods(namespace, job["metadata"]["name"])
        pull = [each["name"] for pod in pods[:1] for each in pod["spec"].get("imagePullSecrets") or ()]
        image = where.image or await _image(cluster, spec, pods)
        if target:  # so that its claim is mounted too
            spec = spec.model_copy(update={"output": target.place})
        arguments = [verb, storage, *to, *options]
        memory = target.memory if target else MEMORY
        pod = tool_pod(JobView.of(job), spec, secrets.token_hex(3), Tool(image, arguments, memory, tuple(pull)))
        return await _run(cluster, pod)


def path_in_pod(place: str) -> str:
    """Where in the pod the model goes: onto a claim, for everything else goes with the pod."""
    try:
        claim = uris.claim_of(place)
        path = uris.local_path(place)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if claim is None:
        raise click.UsageError(f"{place} would go with the pod that writes it: give pvc://claim/path")
    return path


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
