"""Members and nodes that fall short."""

from __future__ import annotations

from llmtrain_operator.api.record import StatusRecord
from llmtrain_operator.api.status.times import Time


class RejectionStatus(StatusRecord):
    """A member that is not in a round because recovery.preflight rejected its pods."""

    index: int
    """Number of the member."""
    count: int
    """How many of its pods in a row."""
    message: str
    """The newest one, its node, and the figures."""
    until: Time | None = None
    """Back-off: no pod is created for it before."""


class NodeFailureStatus(StatusRecord):
    """Something that speaks against a node."""

    node: str
    """Its name."""
    reason: str
    """What kind of failure, as one PascalCase word."""
    time: Time
    """When the operator learned of it."""


class AvoidedNodeStatus(StatusRecord):
    """A node that new pods of the job are kept off."""

    node: str
    """Its name."""
    reason: str
    """What kind of failure it is avoided for, as one PascalCase word."""
    failures: int
    """How many failures of the last day it has on record."""
    until: Time
    """Until when."""


class StragglerStatus(StatusRecord):
    """A member that is slower than its peers."""

    member: int
    """Index of the member."""
    rank: int
    """Rank of its slowest worker."""
    node: str = ""
    """The node that it is on."""
    factor: float
    """Its own part of a step, in time, over that of its peers."""
    since: Time
    """Since when."""
    step: int
    """Step that training was at then."""
    found: bool = False
    """Whether that has lasted, so that it counts; before, it is only watched."""
    keeps_up_since: Time | None = None
    """Since when it keeps up again; it counts until that has lasted too."""


class ReplacedStatus(StatusRecord):
    """The member that was replaced last because it was slower than its peers."""

    member: int
    """Index of the member."""
    node: str = ""
    """The node that it was on."""
    uid: str
    """UID of the pod that makes room for another."""
    time: Time
    """When that was decided."""
