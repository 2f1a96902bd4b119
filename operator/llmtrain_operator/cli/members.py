"""The trainer's tool for snapshots, run in the members of a job: by exec in their pods, or as processes here."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import sys
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import click

from llmtrain_operator.cli.access import Access
from llmtrain_operator.cli.logs import newest
from llmtrain_operator.cli.status import find
from llmtrain_operator.contract import names
from llmtrain_operator.local.folder import RunFolder, root
from llmtrain_operator.ports import Rejected
from llmtrain_operator.state import PodView

if TYPE_CHECKING:
    from llmtrain_operator.cluster.user import UserCluster

_TOOL: Final = "llmtrain_trainer.flash"


@dataclass(frozen=True, slots=True)
class Answer:
    """What the tool said in a member. `content` is its JSON, empty if it failed; `errors` is for people."""

    member: int
    pod: str
    code: int
    content: Mapping[str, Any]
    errors: str = ""

    @property
    def snapshots(self) -> list[dict[str, Any]]:
        """Those that are complete."""
        return list(self.content.get("snapshots") or ())

    @property
    def damaged(self) -> list[str]:
        """What else lies there, as `NAME: why`."""
        return [f"{one['file']}: {one['why']}" for one in self.content.get("damaged") or ()]


class Members(Protocol):
    """The members that run. `options` are the tool's, without --json."""

    async def ask(self, verb: str, options: Sequence[str], members: Collection[int] | None = None) -> list[Answer]:
        """Run the tool in all of them, or in these, at once."""

    async def ask_together(self, verb: str, options: Sequence[str]) -> Answer | None:
        """Run it once for the memory of all; None where no process can reach that."""


@contextlib.asynccontextmanager
async def members_of(access: Access, job: str) -> AsyncIterator[Members]:
    """The job's. Raises `click.ClickException` if none runs."""
    namespace = access.resolved_namespace()
    if access.local:
        async with access.open() as source:
            uid = (await find(source, namespace, job))["metadata"]["uid"]
            pods = _running(await source.pods(namespace, job), job)
        yield _Processes(RunFolder(root(os.environ) / "jobs" / job), uid, pods)
        return
    async with access.open_cluster() as cluster:
        await find(cluster, namespace, job)
        yield _Pods(cluster, namespace, _running(await cluster.pods(namespace, job), job))


def trainer_here(volumes: Path) -> dict[str, str]:
    """The environment of a process of the trainer on this machine. Raises `click.ClickException` if there is none."""
    if importlib.util.find_spec("llmtrain_trainer") is None or importlib.util.find_spec("obstore") is None:
        raise click.ClickException("the trainer is not installed here: pip install 'llmtrain[trainer]'")
    paths = os.pathsep.join(path for path in sys.path if path)
    return {**os.environ, "PYTHONPATH": paths, names.ENV_VOLUMES: str(volumes)}


def _running(pods: Sequence[PodView], job: str) -> list[PodView]:
    found = [pod for pod in newest(pods, None) if pod.phase == "Running"]
    if not found:
        raise click.ClickException(f"{job} has no member that runs: what was in memory went with them")
    return found


class _Pods:
    def __init__(self, cluster: UserCluster, namespace: str, pods: Sequence[PodView]) -> None:
        self._cluster, self._namespace, self._pods = cluster, namespace, pods

    async def ask(self, verb: str, options: Sequence[str], members: Collection[int] | None = None) -> list[Answer]:
        chosen = [pod for pod in self._pods if members is None or pod.index in members]
        return list(await asyncio.gather(*(self._ask(pod, verb, options) for pod in chosen)))

    async def ask_together(self, verb: str, options: Sequence[str]) -> Answer | None:
        del verb, options
        return None

    async def _ask(self, pod: PodView, verb: str, options: Sequence[str]) -> Answer:
        command = ["python3", "-m", _TOOL, verb, "--json", *options]
        try:
            done = await self._cluster.execute(self._namespace, pod.name, command)
        except Rejected as error:
            return Answer(pod.index, pod.name, 2, {}, f"error: {error}\n")
        return _answer(pod, done.code, done.output, done.errors)


class _Processes:
    def __init__(self, folder: RunFolder, job_uid: str, pods: Sequence[PodView]) -> None:
        self._folder, self._pods = folder, pods
        self._environment = trainer_here(root(os.environ) / "volumes") | {names.ENV_JOB_UID: job_uid}

    async def ask(self, verb: str, options: Sequence[str], members: Collection[int] | None = None) -> list[Answer]:
        chosen = [pod for pod in self._pods if members is None or pod.index in members]
        return list(await asyncio.gather(*(self._ask([pod], verb, options) for pod in chosen)))

    async def ask_together(self, verb: str, options: Sequence[str]) -> Answer | None:
        return await self._ask(self._pods, verb, options)

    async def _ask(self, pods: Sequence[PodView], verb: str, options: Sequence[str]) -> Answer:
        directories = [str(self._folder.memory(pod.uid)) for pod in pods]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", _TOOL, verb, *directories, "--json", *options),
            env=self._environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        output, errors = await process.communicate()
        return _answer(pods[0], process.returncode or 0, output.decode(), errors.decode(errors="replace"))


def _answer(pod: PodView, code: int, output: str, errors: str) -> Answer:
    try:
        content = json.loads(output)
    except ValueError:  # it failed, or the image has no such tool
        return Answer(pod.index, pod.name, code or 2, {}, errors or f"error: no answer of {_TOOL}: {output[:200]!r}\n")
    return Answer(pod.index, pod.name, code, content, errors)
