"""`ports.ClusterPort` in memory: one job, so-and-so many nodes with room for one member each, processes for pods.

The job object with its newest status is also written to `status.json` in the job's folder, each pod's output to
`logs/<pod>.log` there. Belongs to one event loop, which must run in the main thread: the kernel ends a pod when the
thread that began it dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import dataclasses
import datetime
import json
import os
import secrets
import signal
import sys
import uuid
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Final

from llmtrain_operator.contract import names
from llmtrain_operator.coordinator.auth import Identity, Unauthenticated
from llmtrain_operator.local.recipe import ADDRESS, Recipe, accelerators, recipe
from llmtrain_operator.ports import Conflict
from llmtrain_operator.scheduling import Api
from llmtrain_operator.state import NodeView, PodView

_LINE_LIMIT: Final = 2**24
_PIPE_PATIENCE: Final = 2.0
"""Seconds to wait for the end of a pod's output after its end: a process that got away may hold the pipe."""


@dataclasses.dataclass(slots=True)
class _Pod:
    view: PodView
    raw: Mapping[str, Any]
    task: asyncio.Task[None] | None = None
    process: asyncio.subprocess.Process | None = None
    grace: float | None = None  # how long it may still take, once it is being deleted


class LocalCluster:
    """`wake` is called when something changed, `say` with every line that a pod prints."""

    def __init__(
        self,
        job: Mapping[str, Any],
        nodes: int,
        folder: Path,
        *,
        wake: Callable[[str], None],
        say: Callable[[PodView, str], None],
        outer: Mapping[str, str],
        own: Mapping[str, str],
        devices: tuple[str, ...] = (),
    ) -> None:
        self._job: dict[str, Any] | None = copy.deepcopy(dict(job))
        self.key = f"{job['metadata']['namespace']}/{job['metadata']['name']}"
        self.events: list[dict[str, Any]] = []
        self._nodes = [f"node-{number}" for number in range(1, nodes + 1)]
        self._folder, self._wake, self._say = folder, wake, say
        self._outer, self._own, self._devices = outer, own, devices
        self._pods: dict[str, _Pod] = {}
        self._tokens: dict[str, Identity] = {}
        self._file = folder / "status.json"
        self._file.unlink(missing_ok=True)  # an earlier run's must not be taken for this one's
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        (folder / "tokens").mkdir(mode=0o700, exist_ok=True)

    # Reads

    def jobs(self) -> Collection[str]:
        """The one job, while it exists."""
        return (self.key,) if self._job else ()

    def job(self, key: str) -> Mapping[str, Any] | None:
        """The job object."""
        return self._job if key == self.key else None

    def pods(self, key: str) -> tuple[PodView, ...]:
        """All pods, in order of index and incarnation."""
        views = (pod.view for pod in self._pods.values()) if key == self.key else ()
        return tuple(sorted(views, key=lambda view: (view.index, view.incarnation)))

    def node(self, name: str) -> NodeView | None:
        """Each node is this machine."""
        return NodeView(name, name, ready=True, schedulable=True, boot_id="") if name in self._nodes else None

    def serves(self, api: Api) -> bool:
        """As if it were: processes of one machine need no scheduler, so nothing of it is missing."""
        del api
        return True

    async def identify(self, token: str) -> Identity:
        """The pod that a token was made for: the coordinator's `Authenticator`. Raises `Unauthenticated`."""
        if identity := self._tokens.get(token):
            return identity
        raise Unauthenticated("the token is not that of a pod of this job")

    # Writes

    async def apply(self, obj: Mapping[str, Any]) -> None:
        """Service, budget and account mean nothing here."""

    async def create(self, obj: Mapping[str, Any]) -> None:
        """Begin a pod as soon as a node is free. Raises `Conflict`, `Rejected`."""
        metadata = obj["metadata"]
        if known := self._pods.get(metadata["name"]):
            if known.view.deleting:
                raise Conflict(f"{metadata['name']} is still being deleted")
            return
        raw = {**obj, "metadata": {**metadata, "uid": str(uuid.uuid4())}}
        self._recipe(raw)  # raises what is to be told now
        self._pods[metadata["name"]] = _Pod(_pending(raw), raw)
        self._place()
        self._wake(self.key)

    async def delete(
        self, kind: str, namespace: str, name: str, uid: str | None = None, grace: int | None = None
    ) -> None:
        """Delete a pod, or the job (which leaves its pods to `close`)."""
        del namespace
        if kind == names.KIND:
            self._job = None
            self._wake(self.key)
        elif (pod := self._pods.get(name)) and uid in (None, pod.view.uid):
            self._end(pod, grace)

    async def patch_status(self, job: Mapping[str, Any], status: Mapping[str, Any]) -> None:
        """Replace the status and write it to the file. Raises `Conflict`."""
        current = self._current(job)
        if current.get("status") != status:
            self._replace({**current, "status": dict(status)})

    async def patch_desired(self, job: Mapping[str, Any], desired: int) -> None:
        """Fill in `spec.nodes.desired`. Raises `Conflict`."""
        current = self._current(job)
        spec = current["spec"]
        metadata = {**current["metadata"], "generation": current["metadata"]["generation"] + 1}
        nodes = {**spec["nodes"], "desired": desired}
        self._replace({**current, "metadata": metadata, "spec": {**spec, "nodes": nodes}})

    def post_event(self, job: Mapping[str, Any], reason: str, message: str, *, warning: bool = False) -> None:
        """Remember it for the display; repeats are counted up."""
        del job
        for event in self.events:
            if (event["reason"], event["message"]) == (reason, message):
                event |= {"lastTimestamp": timestamp(), "count": event["count"] + 1}
                return
        kind = "Warning" if warning else "Normal"
        self.events.append(
            {"type": kind, "reason": reason, "message": message, "count": 1, "lastTimestamp": timestamp()}
        )

    async def close(self, grace: float) -> None:
        """End all pods; returns when they are gone, which takes hardly longer than `grace` seconds."""
        for pod in list(self._pods.values()):
            self._end(pod, grace)
        await asyncio.gather(*(pod.task for pod in self._pods.values() if pod.task), return_exceptions=True)

    # The job

    def _current(self, seen: Mapping[str, Any]) -> dict[str, Any]:
        if self._job is None or self._job["metadata"]["resourceVersion"] != seen["metadata"]["resourceVersion"]:
            raise Conflict(f"{self.key} changed")
        return self._job

    def _replace(self, job: dict[str, Any]) -> None:
        version = str(int(job["metadata"]["resourceVersion"]) + 1)
        self._job = {**job, "metadata": {**job["metadata"], "resourceVersion": version}}
        draft = self._file.with_suffix(".new")
        draft.write_text(json.dumps(self._job, indent=2))
        draft.replace(self._file)
        self._wake(self.key)

    # Pods

    def _place(self) -> None:
        """Give waiting pods the nodes that are free."""
        taken = {pod.view.node for pod in self._pods.values() if pod.task and not pod.task.done()}
        free = [node for node in self._nodes if node not in taken]
        for pod in self._pods.values():
            if pod.task or pod.view.deleting:
                continue
            if free:
                node = free.pop(0)
                self._change(pod, node=node, scheduled=True, unschedulable_message="")
                pod.task = asyncio.create_task(self._run(pod, self._nodes.index(node)))
            else:
                count = len(self._nodes)
                words = f"all {count} nodes have a member already; `--nodes {count + 1}` makes room for one more"
                self._change(pod, unschedulable_message=words)

    async def _run(self, pod: _Pod, node: int) -> None:
        try:
            pod.process = await self._start(pod, node)
        except OSError as error:
            self._change(pod, phase="Failed", reason="StartError", message=str(error))
        else:
            self._change(pod, phase="Running", ready=True, ip=ADDRESS)
            if pod.grace is not None:
                self._signal(pod)
            reader = asyncio.create_task(self._read(pod, pod.process))
            code = await pod.process.wait()
            await asyncio.wait([reader], timeout=_PIPE_PATIENCE)
            reader.cancel()
            trouble = {"reason": "Error", "message": f"exit code {code}"} if code else {}
            self._change(pod, phase="Failed" if code else "Succeeded", ready=False, exit_code=code, **trouble)
        if pod.view.deleting:
            self._pods.pop(pod.view.name, None)
        # This task still counts as running while it is the one that asks.
        asyncio.get_running_loop().call_soon(self._place)

    async def _start(self, pod: _Pod, node: int) -> asyncio.subprocess.Process:
        how, environment = self._prepare(pod)
        if self._devices:
            procs = int(environment.get(names.ENV_PROC_PER_NODE, "1"))
            environment["CUDA_VISIBLE_DEVICES"] = accelerators(node, procs, len(self._nodes), self._devices)
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "llmtrain_operator.local.init", str(os.getpid()), *how.command),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=environment,
            cwd=how.directory,
            start_new_session=True,  # Ctrl-C is for us; we tell the pods
            limit=_LINE_LIMIT,
        )

    def _prepare(self, pod: _Pod) -> tuple[Recipe, dict[str, str]]:
        """The files that the pod finds when it starts, and its environment but for the node's part."""
        how = self._recipe(pod.raw)
        for claim in how.claims:
            Path(how.environment[names.ENV_VOLUMES], claim).mkdir(parents=True, exist_ok=True)
        token = secrets.token_urlsafe(32)
        self._tokens[token] = Identity(pod.view.namespace, pod.view.name, pod.view.uid)
        file = self._folder / "tokens" / pod.view.name
        file.write_text(token)
        return how, {**how.environment, names.ENV_TOKEN_FILE: str(file)}

    def _recipe(self, raw: Mapping[str, Any]) -> Recipe:
        return recipe(raw, self._outer, self._own, sys.executable)

    async def _read(self, pod: _Pod, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        with (self._folder / "logs" / f"{pod.view.name}.log").open("wb", buffering=0) as file:
            async for line in process.stdout:
                file.write(line)
                self._say(pod.view, line.decode(errors="replace").rstrip("\n"))

    def _end(self, pod: _Pod, grace: float | None) -> None:
        if pod.task is None or pod.task.done():
            self._pods.pop(pod.view.name, None)
        else:
            self._change(pod, deleting=True)
            pod.grace = self._recipe(pod.raw).grace if grace is None else grace
            self._signal(pod)
        self._wake(self.key)

    def _signal(self, pod: _Pod) -> None:
        """SIGTERM now and SIGHUP, which our init takes for the end, when the time is over."""
        if pod.process is None:
            return  # it is told as soon as it is there
        if pod.grace:
            _send(pod.process, signal.SIGTERM)
        asyncio.get_running_loop().call_later(pod.grace or 0, _send, pod.process, signal.SIGHUP)

    def _change(self, pod: _Pod, **facts: Any) -> None:
        pod.view = dataclasses.replace(pod.view, **facts)
        self._wake(self.key)


def timestamp() -> str:
    """Now, as an API server would write it."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _send(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)


def _pending(raw: Mapping[str, Any]) -> PodView:
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
        created=timestamp(),
        scheduled=False,
        unschedulable_message="",
        owner=metadata["ownerReferences"][0]["uid"],
    )
