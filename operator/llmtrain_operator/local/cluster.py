"""`ports.ClusterPort` in memory: one job, and processes in place of its pods.

The job object, its pods and events are also kept in the run's folder, for those who look on. Belongs to one event loop.
"""

from __future__ import annotations

import copy
import dataclasses
import datetime
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

from llmtrain_operator.api.validation import parse
from llmtrain_operator.capacity import PODS, Inventory
from llmtrain_operator.contract import names
from llmtrain_operator.coordinator.auth import Identity
from llmtrain_operator.local.folder import RunFolder
from llmtrain_operator.local.pods import Machine, Pods
from llmtrain_operator.local.stored import merge_patch
from llmtrain_operator.ports import Conflict, Rejected
from llmtrain_operator.scheduling import Api
from llmtrain_operator.state import NodeView, PodView

_MOST_EVENTS: Final = 500


class LocalCluster:
    """`wake` is called when something changed, `say` with every line that a pod prints."""

    def __init__(
        self,
        job: Mapping[str, Any],
        machine: Machine,
        folder: RunFolder,
        *,
        wake: Callable[[str], None],
        say: Callable[[PodView, str], None],
    ) -> None:
        self.key = f"{job['metadata']['namespace']}/{job['metadata']['name']}"
        self.events: list[dict[str, Any]] = []
        self._job: dict[str, Any] | None = None
        self._machine, self._folder, self._wake = machine, folder, wake
        folder.make()
        # What an earlier run left must not be taken for this one's.
        folder.write("events", self.events)
        folder.write("pods", [])
        self._pods = Pods(machine, folder, self._pods_changed, say)
        self._inventory = Inventory()
        self._counted: dict[str, PodView] = {}
        for name in machine.nodes:
            self._inventory.node_changed(name, self.node(name))
        self._store(copy.deepcopy(dict(job)))

    # Reads

    def jobs(self) -> Collection[str]:
        """The one job, while it exists."""
        return (self.key,) if self._job else ()

    def job(self, key: str) -> Mapping[str, Any] | None:
        """The job object."""
        return self._job if key == self.key else None

    def pods(self, key: str) -> tuple[PodView, ...]:
        """All pods, in order of index and incarnation."""
        return self._pods.views if key == self.key else ()

    def node(self, name: str) -> NodeView | None:
        """Each node is this machine."""
        if name not in self._machine.nodes:
            return None
        return NodeView(name, name, ready=True, schedulable=True, boot_id="", allocatable=((PODS, 1000),))

    def inventory(self) -> Inventory | None:
        """Each node has room for one pod, whatever that asks for."""
        return self._inventory

    def serves(self, api: Api) -> bool:
        """As if it were: processes of one machine need no scheduler, so nothing of it is missing."""
        del api
        return True

    async def identify(self, token: str) -> Identity:
        """The pod that a token was made for: the coordinator's `Authenticator`. Raises `Unauthenticated`."""
        return self._pods.identify(token)

    # Writes

    async def apply(self, obj: Mapping[str, Any]) -> None:
        """Service, budget and account mean nothing here."""

    async def create(self, obj: Mapping[str, Any]) -> None:
        """Begin a pod as soon as a node is free. Raises `Conflict`, `Rejected`."""
        self._pods.create(obj, timestamp())

    async def delete(
        self, kind: str, namespace: str, name: str, uid: str | None = None, grace: int | None = None
    ) -> None:
        """Delete a pod, or the job (which leaves its pods to `close`)."""
        del namespace
        if kind == names.KIND:
            self._job = None
            self._wake(self.key)
        else:
            self._pods.end(name, uid, grace)

    async def orphans(self, key: str) -> tuple[PodView, ...]:
        """None: pods end with the run that they belong to."""
        del key
        return ()

    async def patch_status(self, job: Mapping[str, Any], status: Mapping[str, Any]) -> None:
        """Replace the status. Raises `Conflict`."""
        current = self._current(job)
        if current.get("status") != status:
            self._replace({**current, "status": dict(status)})

    async def patch_desired(self, job: Mapping[str, Any], desired: int) -> None:
        """Fill in `spec.nodes.desired`. Raises `Conflict`, `Rejected`."""
        self._current(job)
        self.patch({"spec": {"nodes": {"desired": desired}}})

    def patch(self, change: Mapping[str, Any]) -> Mapping[str, Any]:
        """Apply a user's merge patch; the new job. Raises `Rejected` with what is wrong with it."""
        if self._job is None:
            raise Rejected(f"{self.key} is gone")
        changed = merge_patch(self._job, change)
        _, problems = parse(changed["metadata"]["name"], changed["spec"])
        if problems:
            raise Rejected("; ".join(f"{each.path}: {each.message}. {each.remedy}" for each in problems))
        metadata = changed["metadata"]
        if changed["spec"] != self._job["spec"]:
            metadata = {**metadata, "generation": metadata["generation"] + 1}
        self._replace({**changed, "metadata": metadata})
        return self._job

    def post_event(self, job: Mapping[str, Any], reason: str, message: str, *, warning: bool = False) -> None:
        """Remember it for the display; repeats are counted up."""
        del job
        known = next((e for e in self.events if (e["reason"], e["message"]) == (reason, message)), None)
        if known:
            known |= {"lastTimestamp": timestamp(), "count": known["count"] + 1}
        else:
            kind = "Warning" if warning else "Normal"
            self.events.append(
                {"type": kind, "reason": reason, "message": message, "count": 1, "lastTimestamp": timestamp()}
            )
            del self.events[:-_MOST_EVENTS]
        self._folder.write("events", self.events)

    async def close(self, grace: float) -> None:
        """End all pods; returns when they are gone, which takes hardly longer than `grace` seconds."""
        await self._pods.close(grace)

    def _current(self, seen: Mapping[str, Any]) -> dict[str, Any]:
        if self._job is None or self._job["metadata"]["resourceVersion"] != seen["metadata"]["resourceVersion"]:
            raise Conflict(f"{self.key} changed")
        return self._job

    def _replace(self, job: dict[str, Any]) -> None:
        version = str(int(job["metadata"]["resourceVersion"]) + 1)
        self._store({**job, "metadata": {**job["metadata"], "resourceVersion": version}})
        self._wake(self.key)

    def _store(self, job: dict[str, Any]) -> None:
        self._job = job
        self._folder.write("status", job)

    def _pods_changed(self) -> None:
        views = {view.uid: view for view in self._pods.views}
        for uid in self._counted.keys() | views.keys():
            self._inventory.pod_changed(self._counted.get(uid), views.get(uid))
        self._counted = views
        self._folder.write("pods", [dataclasses.asdict(view) for view in self._pods.views])
        self._wake(self.key)


def timestamp() -> str:
    """Now, as an API server would write it."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
