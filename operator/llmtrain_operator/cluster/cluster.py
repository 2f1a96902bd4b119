"""The controller's port onto a Kubernetes API server: reads from reflectors, writes through to the server.

What a write returns is taken into the reflectors at once, so that a pass sees what the pass before it did.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from llmtrain_operator.capacity import Inventory
from llmtrain_operator.cluster import writes
from llmtrain_operator.cluster.client import Client
from llmtrain_operator.cluster.discovery import Discovery
from llmtrain_operator.cluster.events import EventPoster
from llmtrain_operator.cluster.projections import job_view, node_view, pod_view
from llmtrain_operator.cluster.reflector import Reflector
from llmtrain_operator.cluster.resources import JOBS, NODES, PODS, split_key
from llmtrain_operator.contract import names
from llmtrain_operator.scheduling import OPTIONAL_APIS, Api
from llmtrain_operator.state import NodeView, PodView

ROOM_WINDOW = 0.5
"""Seconds in which pods that go wake those who may want their places only once: a large job's pods go one by one."""


class Cluster:
    """Implements `ports.ClusterPort` for some namespaces, or for all if `namespaces` is empty.

    `wake(key)` is called for every job that something changed for: the job object, a pod of it, a node under one; and
    for those that are autoscaled where there may be room for more members.
    Reads are complete once `synced()` has returned; they work, with less, before.
    """

    def __init__(self, client: Client, wake: Callable[[str], None], namespaces: Sequence[str] = ()) -> None:
        self._client, self._wake = client, wake
        self._events = EventPoster(client)
        self._pods_of: dict[str, dict[str, PodView]] = defaultdict(dict)  # by job key, then by pod key
        self._inventory = Inventory()
        self._room_made: asyncio.TimerHandle | None = None
        self._jobs = {
            ns: Reflector(client, JOBS, job_view, self._job_changed, namespace=ns) for ns in namespaces or ("",)
        }
        self._pods = {
            ns: Reflector(client, PODS, pod_view, self._pod_changed, namespace=ns, selector=names.LABEL_JOB)
            for ns in namespaces or ("",)
        }
        self._nodes = Reflector(client, NODES, node_view, self._node_changed, optional=True)
        self._discovery = Discovery(client, OPTIONAL_APIS, self._wake_all)

    async def run(self) -> None:
        """Keep the caches up to date and post events, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for reflector in self._reflectors():
                tasks.create_task(reflector.run())
            tasks.create_task(self._events.run())
            tasks.create_task(self._discovery.run())

    async def synced(self) -> None:
        """Return when all caches have seen their first complete list."""
        for reflector in self._reflectors():
            await reflector.synced.wait()
        await self._discovery.synced.wait()

    async def refresh(self) -> None:
        """Return when jobs and pods are known as they were on the server at the call, or later.

        Watches deliver nearly everything within milliseconds, but a leader that has missed a member or a pod would tell
        agents the wrong thing. Raises `Rejected`, `Unavailable`.
        """
        reflectors: list[Reflector[Any]] = [*self._jobs.values(), *self._pods.values()]
        await asyncio.gather(*(reflector.refresh() for reflector in reflectors))

    def step_down(self) -> None:
        """Drop the events that are still to be posted: the next leader tells the story."""
        self._events.forget()

    def jobs(self) -> Collection[str]:
        """See `ports.ClusterPort.jobs`, as for all that follow."""
        return [key for reflector in self._jobs.values() for key in reflector]

    def known(self) -> Collection[str]:
        """The keys of all jobs, also of those that are gone and have left pods."""
        return {*self.jobs(), *self._pods_of}

    def job(self, key: str) -> Mapping[str, Any] | None:
        reflector = _responsible(self._jobs, split_key(key)[0])
        return reflector.get(key) if reflector else None

    def pods(self, key: str) -> tuple[PodView, ...]:
        job = self.job(key)
        # Those of an earlier job of that name are about to be cleared away.
        mine = (p for p in self._pods_of.get(key, {}).values() if job is None or p.owner == job["metadata"]["uid"])
        return tuple(sorted(mine, key=lambda pod: (pod.index, pod.incarnation)))

    def node(self, name: str) -> NodeView | None:
        return self._nodes.get(name)

    def inventory(self) -> Inventory | None:
        return self._inventory if any(True for _ in self._nodes) else None

    def serves(self, api: Api) -> bool:
        return self._discovery.serves(api)

    async def apply(self, obj: Mapping[str, Any]) -> None:
        self._absorb(await writes.apply(self._client, obj))

    async def create(self, obj: Mapping[str, Any]) -> None:
        self._absorb(await writes.create(self._client, obj))

    async def delete(
        self, kind: str, namespace: str, name: str, uid: str | None = None, grace: int | None = None
    ) -> None:
        self._absorb(await writes.delete(self._client, kind, namespace, name, uid, grace))

    async def orphans(self, key: str) -> tuple[PodView, ...]:
        job = self.job(key)
        known = job["metadata"]["uid"] if job else ""
        left = [p for p in self._pods_of.get(key, {}).values() if p.owner not in ("", known) and not p.deleting]
        if not left:
            return ()
        # Our own view of jobs may be behind that of pods: the server says whose owner is gone.
        living = await writes.uid_now(self._client, *split_key(key))
        return tuple(pod for pod in left if pod.owner != living)

    async def patch_status(self, job: Mapping[str, Any], status: Mapping[str, Any]) -> None:
        self._absorb(await writes.patch_status(self._client, job, status))

    async def patch_desired(self, job: Mapping[str, Any], desired: int) -> None:
        self._absorb(await writes.patch_desired(self._client, job, desired))

    def post_event(self, job: Mapping[str, Any], reason: str, message: str, *, warning: bool = False) -> None:
        self._events.post(job, reason, message, warning=warning)

    def _reflectors(self) -> list[Reflector[Any]]:
        return [*self._jobs.values(), *self._pods.values(), self._nodes]

    def _absorb(self, answer: Mapping[str, Any] | None) -> None:
        if answer is None:
            return
        caches: Mapping[str, Mapping[str, Reflector[Any]]] = {names.KIND: self._jobs, "Pod": self._pods}
        reflector = _responsible(caches.get(answer["kind"], {}), answer["metadata"].get("namespace", ""))
        if reflector:
            reflector.absorb(answer)

    def _wake_all(self) -> None:
        for key in self.jobs():
            self._wake(key)

    def _wake_autoscaled(self) -> None:
        self._room_made = None
        for key in self.jobs():
            if ((self.job(key) or {}).get("spec") or {}).get("autoscale", {}).get("enabled"):
                self._wake(key)

    def _job_changed(self, key: str, old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> None:
        # Only the leader writes the status, and what it wrote is no news to it.
        if old is None or new is None or _without_status(old) != _without_status(new):
            self._wake(key)

    def _pod_changed(self, key: str, old: PodView | None, new: PodView | None) -> None:
        if self._inventory.pod_changed(old, new) and self._room_made is None:
            self._room_made = asyncio.get_running_loop().call_later(ROOM_WINDOW, self._wake_autoscaled)
        if old and not (new and _job_of(new) == _job_of(old)):
            siblings = self._pods_of[_job_of(old)]
            del siblings[key]
            if not siblings:
                del self._pods_of[_job_of(old)]
            self._wake(_job_of(old))
        if new:
            self._pods_of[_job_of(new)][key] = new
            self._wake(_job_of(new))

    def _node_changed(self, key: str, old: NodeView | None, new: NodeView | None) -> None:
        del old
        if self._inventory.node_changed(key, new):
            self._wake_autoscaled()
        for job, pods in self._pods_of.items():
            if any(pod.node == key for pod in pods.values()):
                self._wake(job)


def _without_status(job: Mapping[str, Any]) -> dict[str, Any]:
    metadata = {key: value for key, value in job["metadata"].items() if key != "resourceVersion"}
    return {**job, "metadata": metadata, "status": None}


def _job_of(pod: PodView) -> str:
    return f"{pod.namespace}/{pod.job}"


def _responsible(reflectors: Mapping[str, Reflector[Any]], namespace: str) -> Reflector[Any] | None:
    return reflectors.get(namespace) or reflectors.get("")
