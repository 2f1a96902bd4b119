"""Where jobs are looked at and steered: a cluster with the user's own rights, or the runs on this machine."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Mapping
from typing import Any, Protocol

from llmtrain_operator.state import PodView


class JobSource(Protocol):
    """`cluster.user.UserCluster` or `local.jobs.LocalJobs`. Objects are Kubernetes JSON.

    Everything raises `Rejected` (no such thing, no right to it, not valid) and `Unavailable`.
    """

    async def job(self, namespace: str, name: str) -> dict[str, Any]:
        """One job object."""

    async def jobs(self, namespace: str) -> list[dict[str, Any]]:
        """The job objects of a namespace, of all namespaces if it is empty."""

    async def pods(self, namespace: str, job: str) -> list[PodView]:
        """The member pods of a job in order of index and incarnation, ended ones included."""

    async def events(self, namespace: str, uid: str) -> list[dict[str, Any]]:
        """The events about one object, in no particular order."""

    async def pod_events(self, namespace: str, uids: Collection[str]) -> list[dict[str, Any]]:
        """The events about the pods with these UIDs, in no particular order."""

    async def patch(self, namespace: str, name: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Apply a JSON merge patch to a job."""

    async def scale(self, namespace: str, name: str, members: int) -> None:
        """Want so many members."""

    def log(
        self, namespace: str, pod: str, *, follow: bool, tail: int | None = None, since: str | None = None
    ) -> AsyncGenerator[tuple[str, str], None]:
        """(time, line) pairs of a member's log: the last `tail` lines, or those from the time `since` on, or all.

        With `follow` it goes on until the member ends.
        """
