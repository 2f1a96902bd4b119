"""Who is in the current round, and who is to leave."""

from __future__ import annotations

from typing import Literal

from llmtrain_operator.api.record import StatusRecord
from llmtrain_operator.api.status.times import Time


class MemberStatus(StatusRecord):
    """A member of the current round. Its rank is its place in the list."""

    index: int
    """Stable number of the member."""
    incarnation: int
    """How many pods this index has had."""
    pod: str
    """Name of its pod."""
    uid: str
    """UID of its pod."""
    node: str = ""
    """Node that its pod is on."""
    host: str
    """Address that the other members reach it at."""
    store_port: int
    """Port of the rendezvous store that it hosts if its rank is 0."""
    flash_port: int = 0
    """Port where its agent hands out snapshots and takes in copies; 0: nowhere."""
    buddies: tuple[int, ...] = ()
    """Ranks of the members that are to keep copies of its snapshots, the best first."""
    succeeded: bool = False
    """Whether all its workers have ended well; what becomes of its pod afterwards does not matter."""


class EndingStatus(StatusRecord):
    """The round is to end at a step boundary, after its state is saved."""

    reason: Literal["Resize", "Suspend"]
    """What for."""
    message: str = ""
    """The same as a sentence."""
    since: Time
    """When it was decided."""
    leaving: bool = False
    """Whether that is because members have to go: a drain."""


class RoundStatus(StatusRecord):
    """The current membership generation. Written before it is published, so that it never runs twice."""

    number: int
    """Number of the round; it only grows."""
    procs_per_member: int
    """Workers per member."""
    members: tuple[MemberStatus, ...]
    """Members in order of rank."""
    started_at: Time
    """When the round was formed."""
    reason: str = ""
    """Why it has these members."""
    wanted: int | None = None
    """Members that were wanted when it was formed."""
    ending: EndingStatus | None = None
    """Set when the members were told to save and leave."""


class LeavingNodeStatus(StatusRecord):
    """A node that is about to go, and the pods that were on it when that became known."""

    name: str
    """Its name."""
    taint: str
    """What says so: the taint's key and effect."""
    pods: tuple[str, ...] = ()
    """UIDs of the pods that are to leave it. One that comes to it later stays."""
