"""What the controller needs of a place where jobs run, and the errors it reacts to.

`cluster/` implements it with a Kubernetes API server. Reads are answered from memory and include the caller's own
finished writes; writes are idempotent, so that a pass that failed half-way is simply run again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Protocol

from llmtrain_operator.capacity import Inventory
from llmtrain_operator.scheduling import Api
from llmtrain_operator.state import NodeView, PodView


class Conflict(Exception):  # noqa: N818 - the three names say what happened; the reaction is in their docstrings
    """The object changed since it was read: observe again, then decide again."""


class Rejected(Exception):  # noqa: N818 - says what happened, as above
    """The request will never succeed as it is (invalid, forbidden, over quota): tell the user, look again later."""


class Unavailable(Exception):  # noqa: N818 - says what happened, as above
    """No answer, or one that says not now: retry with back-off."""


class ClusterPort(Protocol):
    """Jobs, their pods and the nodes under them. Keys of jobs are `namespace/name`; objects are Kubernetes JSON."""

    def jobs(self) -> Collection[str]:
        """The keys of all known jobs."""

    def job(self, key: str) -> Mapping[str, Any] | None:
        """The newest known job object, None if it does not exist. Not to be changed by the caller."""

    def pods(self, key: str) -> tuple[PodView, ...]:
        """The pods that carry the job's label, in order of index and incarnation, deleting ones included."""

    def node(self, name: str) -> NodeView | None:
        """The node, None if it does not exist or nodes may not be read."""

    def inventory(self) -> Inventory | None:
        """What nodes offer and members have of it, to be read only; None if nodes may not be read."""

    def serves(self, api: Api) -> bool:
        """Whether this optional API is there, as of some seconds ago."""

    async def apply(self, obj: Mapping[str, Any]) -> None:
        """Make the fields of `obj` hold, creating it if need be.

        Raises `Conflict` if an earlier job's object of that name had to be deleted first, `Rejected`, `Unavailable`.
        """

    async def create(self, obj: Mapping[str, Any]) -> None:
        """Create `obj`; one of that name with the same controlling owner counts as created.

        Raises `Conflict` if the name is taken by another's object or by one being deleted, `Rejected`, `Unavailable`.
        """

    async def delete(
        self, kind: str, namespace: str, name: str, uid: str | None = None, grace: int | None = None
    ) -> None:
        """Delete the object; with `uid` only that incarnation of it. One that is already gone is fine.

        `grace` is in seconds (None: the object's own; 0: at once, without waiting for the node). Raises `Rejected`,
        `Unavailable`.
        """

    async def orphans(self, key: str) -> tuple[PodView, ...]:
        """The pods that an earlier job of this name left, if it is gone for certain; those being deleted excluded.

        Raises `Rejected`, `Unavailable`.
        """

    async def patch_status(self, job: Mapping[str, Any], status: Mapping[str, Any]) -> None:
        """Make `status` the whole status of `job` as it was observed; no request if it already is.

        Raises `Conflict` if the job changed since or is gone, `Rejected`, `Unavailable`.
        """

    async def patch_desired(self, job: Mapping[str, Any], desired: int) -> None:
        """Fill in `spec.nodes.desired`, for /scale. Raises `Conflict`, `Rejected`, `Unavailable`."""

    def post_event(self, job: Mapping[str, Any], reason: str, message: str, *, warning: bool = False) -> None:
        """Tell the story as an Event on the job, some time soon. Never waits or raises; repeats are counted up."""
