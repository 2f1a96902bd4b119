"""Pods as process groups: so-and-so many nodes with room for one pod each.

What a pod prints goes to its log and to `say`; `changed` is called when anything about one is different. Belongs to one
event loop, which must run in the main thread: the kernel ends a pod when the thread that began it dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import secrets
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, Final

from llmtrain_operator.contract import names
from llmtrain_operator.coordinator.auth import Identity, Unauthenticated
from llmtrain_operator.local.folder import RunFolder
from llmtrain_operator.local.leftovers import end_leftovers
from llmtrain_operator.local.recipe import ADDRESS, Recipe, accelerators, recipe
from llmtrain_operator.ports import Conflict
from llmtrain_operator.state import PodView

_LINE_LIMIT: Final = 2**24
_REPEAT: Final = 0.5
"""Seconds between two attempts to end a pod."""
_PIPE_PATIENCE: Final = 2.0
"""Seconds to wait for the end of a pod's output after its end: a process that got away may hold the pipe."""


@dataclasses.dataclass(frozen=True, slots=True)
class Machine:
    """What this machine gives to pods: nodes, the caller's environment, what holds whatever the pod says, devices."""

    nodes: tuple[str, ...]
    outer: Mapping[str, str]
    own: Mapping[str, str]
    devices: tuple[str, ...] = ()


@dataclasses.dataclass(slots=True)
class _Pod:
    view: PodView
    raw: Mapping[str, Any]
    task: asyncio.Task[None] | None = None
    process: asyncio.subprocess.Process | None = None
    grace: float | None = None  # how long it may still take, once it is being deleted


class Pods:
    """All pods of a run."""

    def __init__(
        self, machine: Machine, folder: RunFolder, changed: Callable[[], None], say: Callable[[PodView, str], None]
    ) -> None:
        self._machine, self._folder, self._changed, self._say = machine, folder, changed, say
        self._pods: dict[str, _Pod] = {}
        self._tokens: dict[str, Identity] = {}
        self._closing = False

    @property
    def views(self) -> tuple[PodView, ...]:
        """In order of index and incarnation."""
        views = (pod.view for pod in self._pods.values())
        return tuple(sorted(views, key=lambda view: (view.index, view.incarnation)))

    def identify(self, token: str) -> Identity:
        """The pod that a token was made for. Raises `Unauthenticated`."""
        if identity := self._tokens.get(token):
            return identity
        raise Unauthenticated("the token is not that of a pod of this job")

    def create(self, obj: Mapping[str, Any], now: str) -> None:
        """Begin a pod as soon as a node is free; `now` is its creation time. Raises `Conflict`, `Rejected`."""
        metadata = obj["metadata"]
        if known := self._pods.get(metadata["name"]):
            if known.view.deleting:
                raise Conflict(f"{metadata['name']} is still being deleted")
            return
        raw = {**obj, "metadata": {**metadata, "uid": str(uuid.uuid4())}}
        self._recipe(raw)  # raises what is to be told now
        self._pods[metadata["name"]] = _Pod(_pending(raw, now), raw)
        self._place()
        self._changed()

    def end(self, name: str, uid: str | None, grace: float | None) -> None:
        """Delete a pod, if it is still the one with this UID; `grace` in seconds, None: what it asks for itself."""
        pod = self._pods.get(name)
        if pod is None or uid not in (None, pod.view.uid):
            return
        if pod.task is None or pod.task.done():
            self._pods.pop(name, None)
        else:
            pod.grace = self._recipe(pod.raw).grace if grace is None else grace
            self._change(pod, deleting=True)
            self._signal(pod)
        self._changed()

    async def close(self, grace: float) -> None:
        """End all; returns when they are gone, which takes hardly longer than `grace` seconds. What they were stays."""
        self._closing = True
        living = [pod for pod in self._pods.values() if pod.task and not pod.task.done()]
        for pod in living:
            pod.grace = grace
            self._signal(pod)
        await asyncio.gather(*(pod.task for pod in living if pod.task), return_exceptions=True)

    def _place(self) -> None:
        """Give waiting pods the nodes that are free."""
        nodes = self._machine.nodes
        taken = {pod.view.node for pod in self._pods.values() if pod.task and not pod.task.done()}
        free = [node for node in nodes if node not in taken]
        for pod in self._pods.values():
            if pod.task or pod.view.deleting or self._closing:
                continue
            if free:
                node = free.pop(0)
                self._change(pod, node=node, scheduled=True, unschedulable_message="")
                pod.task = asyncio.create_task(self._run(pod, nodes.index(node)))
            else:
                words = (
                    f"all {len(nodes)} nodes have a member already; `--nodes {len(nodes) + 1}` makes room for one more"
                )
                self._change(pod, unschedulable_message=words)

    async def _run(self, pod: _Pod, node: int) -> None:
        try:
            pod.process, pipe = await self._start(pod, node)
        except OSError as error:
            self._change(pod, phase="Failed", reason="StartError", message=str(error))
        else:
            self._change(pod, phase="Running", ready=True, ip=ADDRESS)
            if pod.grace is not None:
                self._signal(pod)
            code = await self._follow(pod, pod.process, pipe)
            trouble = {"reason": "Error", "message": f"exit code {code}"} if code else {}
            self._change(pod, phase="Failed" if code else "Succeeded", ready=False, exit_code=code, **trouble)
        self._folder.forget_memory(pod.view.uid)
        if pod.view.deleting:
            self._pods.pop(pod.view.name, None)
            self._changed()
        # This task still counts as running while it is the one that asks.
        asyncio.get_running_loop().call_soon(self._place)

    async def _follow(self, pod: _Pod, process: asyncio.subprocess.Process, pipe: int) -> int:
        """Read what it prints until it has ended; nothing that it began is left then."""
        async with _lines(pipe) as output:
            reader = asyncio.create_task(self._read(pod, output))
            code = await process.wait()
            # Only if its first process was killed is there anything: else that one has seen to it.
            await asyncio.to_thread(end_leftovers, self._folder.tokens / pod.view.name)
            await asyncio.wait([reader], timeout=_PIPE_PATIENCE)
            reader.cancel()
        return code

    async def _start(self, pod: _Pod, node: int) -> tuple[asyncio.subprocess.Process, int]:
        how, environment = self._prepare(pod)
        if devices := self._machine.devices:
            procs = int(environment.get(names.ENV_PROC_PER_NODE, "1"))
            environment["CUDA_VISIBLE_DEVICES"] = accelerators(node, procs, len(self._machine.nodes), devices)
        # A pipe of our own: asyncio's has to be closed by everyone before it says that a process has ended.
        ours, theirs = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "llmtrain_operator.local.init", str(os.getpid()), *how.command),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=theirs,
                stderr=asyncio.subprocess.STDOUT,
                env=environment,
                cwd=how.directory,
                start_new_session=True,  # Ctrl-C is for us; we tell the pods
            )
        except OSError:
            os.close(ours)
            raise
        finally:
            os.close(theirs)
        return process, ours

    def _prepare(self, pod: _Pod) -> tuple[Recipe, dict[str, str]]:
        """The files that the pod finds when it starts, and its environment but for the node's part."""
        how = self._recipe(pod.raw)
        for claim in how.claims:
            Path(how.environment[names.ENV_VOLUMES], claim).mkdir(parents=True, exist_ok=True)
        token = secrets.token_urlsafe(32)
        self._tokens[token] = Identity(pod.view.namespace, pod.view.name, pod.view.uid)
        file = self._folder.tokens / pod.view.name
        file.write_text(token)
        scratch = self._folder.scratch(pod.view.uid)
        scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
        own = {names.ENV_TOKEN_FILE: str(file), "TMPDIR": str(scratch)}
        if port := how.environment.get(names.ENV_METRICS_PORT):
            own[names.ENV_METRICS_PORT] = own_port(port, pod.view.index)
        if names.ENV_FLASH in how.environment:
            memory = self._folder.memory(pod.view.uid)
            memory.mkdir(mode=0o700, parents=True, exist_ok=True)
            own[names.ENV_FLASH] = str(memory)
        return how, {**how.environment, **own}

    def _recipe(self, raw: Mapping[str, Any]) -> Recipe:
        return recipe(raw, self._machine.outer, self._machine.own, sys.executable)

    async def _read(self, pod: _Pod, output: asyncio.StreamReader) -> None:
        with self._folder.log(pod.view.name).open("wb", buffering=0) as file:
            async for line in output:
                file.write(line)
                self._say(pod.view, line.decode(errors="replace").rstrip("\n"))

    def _signal(self, pod: _Pod) -> None:
        """SIGTERM now and SIGHUP, which our init takes for the end, when the time is over."""
        if pod.process is None:
            return  # it is told as soon as it is there
        if pod.grace:
            _send(pod.process, signal.SIGTERM)
        asyncio.get_running_loop().call_later(pod.grace or 0, _hang_up, pod.process)

    def _change(self, pod: _Pod, **facts: Any) -> None:
        pod.view = dataclasses.replace(pod.view, **facts)
        self._changed()


@contextlib.asynccontextmanager
async def _lines(pipe: int) -> AsyncIterator[asyncio.StreamReader]:
    reader = asyncio.StreamReader(limit=_LINE_LIMIT)
    protocol = asyncio.StreamReaderProtocol(reader)
    file = os.fdopen(pipe, "rb", buffering=0)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, file)
    with contextlib.closing(transport):
        yield reader


def own_port(first: str, index: int) -> str:
    """Where a member serves its metrics, if the caller has named a port for the first one: all share this machine."""
    return str(int(first) + index) if first.isdigit() and int(first) else "0"


def _hang_up(process: asyncio.subprocess.Process) -> None:
    """SIGHUP until it is heard: below nohup it is ignored while the process starts."""
    if process.returncode is None:
        _send(process, signal.SIGHUP)
        asyncio.get_running_loop().call_later(_REPEAT, _hang_up, process)


def _send(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)


def _pending(raw: Mapping[str, Any], now: str) -> PodView:
    metadata = raw["metadata"]
    labels = metadata["labels"]
    return PodView(
        name=metadata["name"],
        namespace=metadata["namespace"],
        uid=metadata["uid"],
        job=labels[names.LABEL_JOB],
        index=int(labels[names.LABEL_INDEX]),
        incarnation=int(labels[names.LABEL_INCARNATION]),
        phase="Pending",
        ready=False,
        node="",
        deleting=False,
        ip="",
        reason="",
        message="",
        exit_code=None,
        created=now,
        scheduled=False,
        unschedulable_message="",
        owner=metadata["ownerReferences"][0]["uid"],
    )
