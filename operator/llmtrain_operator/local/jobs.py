"""Runs on this machine as the command line sees them: what `cluster.user.UserCluster` is for a cluster."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from llmtrain_operator.contract.codec import from_dict
from llmtrain_operator.local import control
from llmtrain_operator.local.folder import RunFolder
from llmtrain_operator.local.stored import as_left
from llmtrain_operator.ports import Rejected
from llmtrain_operator.state import PodView

_INTERVAL: Final = 0.2


class LocalJobs:
    """The runs below `root`, those that are over included. Namespaces mean nothing here."""

    def __init__(self, root: Path) -> None:
        self._root = root

    async def job(self, namespace: str, name: str) -> dict[str, Any]:
        """One job object. Raises `Rejected`."""
        del namespace
        folder = self._folder(name)
        job: dict[str, Any] | None = folder.read("status")
        if job is None:
            raise Rejected(f"there is no local run {name}; `llmtrain status --local` lists all")
        return job if await control.is_running(folder) else as_left(job, time.time())

    async def jobs(self, namespace: str) -> list[dict[str, Any]]:
        """All of them."""
        found = sorted(path.parent.name for path in self._root.glob("jobs/*/status.json"))
        return [await self.job(namespace, name) for name in found]

    async def pods(self, namespace: str, job: str) -> list[PodView]:
        """The members in order of index and incarnation; of a run that is over, the last ones."""
        del namespace
        folder = self._folder(job)
        views = [from_dict(PodView, pod) for pod in folder.read("pods") or ()]
        if await control.is_running(folder):
            return views
        return [pod if pod.ended else replace(pod, phase="Failed", reason="RunEnded") for pod in views]

    async def events(self, namespace: str, uid: str) -> list[dict[str, Any]]:
        """The events about the job with this UID."""
        for job in await self.jobs(namespace):
            if job["metadata"]["uid"] == uid:
                return list(self._folder(job["metadata"]["name"]).read("events") or ())
        return []

    async def pod_events(self, namespace: str, uids: Collection[str]) -> list[dict[str, Any]]:
        """Pods have none of their own here."""
        del namespace, uids
        return []

    async def patch(self, namespace: str, name: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Apply a JSON merge patch to a running job. Raises `Rejected`, also if it does not run."""
        await self.job(namespace, name)
        return await control.order(self._folder(name), body)

    async def scale(self, namespace: str, name: str, members: int) -> None:
        """Want so many members. Raises what `patch` raises."""
        await self.patch(namespace, name, {"spec": {"nodes": {"desired": members}}})

    async def log(
        self, namespace: str, pod: str, *, follow: bool, tail: int | None = None, since: str | None = None
    ) -> AsyncGenerator[tuple[str, str], None]:
        """(number, line) pairs of a member's log: the last `tail` lines, those after the number `since`, or all.

        With `follow` it goes on until the pod ends.
        """
        del namespace
        job = pod.rsplit("-", 2)[0]
        file = self._folder(job).log(pod)
        if not file.exists():
            raise Rejected(f"{pod} has printed nothing yet (waiting to start)")
        with file.open("rb") as stream:
            *lines, rest = stream.read().split(b"\n")
            lines += [rest] if rest and not follow else []
            number = max(int(since or 0), len(lines) - tail if tail is not None else 0)
            lines = lines[number:]
            while True:
                for line in lines:
                    number += 1
                    yield f"{number:012}", line.decode(errors="replace")
                if not follow:
                    return
                await asyncio.sleep(_INTERVAL)
                follow = await self._lives(job, pod)  # asked before the last read, so that nothing is missed
                *lines, rest = (rest + stream.read()).split(b"\n")
                lines += [rest] if rest and not follow else []

    async def _lives(self, job: str, pod: str) -> bool:
        folder = self._folder(job)
        views = {view["name"]: from_dict(PodView, view) for view in folder.read("pods") or ()}
        return pod in views and not views[pod].ended and await control.is_running(folder)

    def _folder(self, job: str) -> RunFolder:
        return RunFolder(self._root / "jobs" / job)
