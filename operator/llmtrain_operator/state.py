"""What the operator knows about the world and what it decides: frozen records, no behaviour.

Pure. Job keys are `namespace/name` throughout, as in the wire messages; times are RFC 3339 strings as the API server
writes them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PodView:
    """The few facts about a member's pod that decisions are made of.

    `reason` and `message` say why the pod is not (or no longer) working, in the order of how telling they are: the
    trainer container's end, what it waits for (ImagePullBackOff, CreateContainerError, ...), the pod's own reason
    (Evicted, NodeLost, ...). Empty while all is well. `exit_code` is the trainer container's, once it has ended.
    `unschedulable_message` is the scheduler's or the gate's explanation while `scheduled` is False.
    """

    name: str
    namespace: str
    uid: str
    job: str
    index: int
    incarnation: int
    phase: str
    ready: bool
    node: str
    deleting: bool
    ip: str
    reason: str
    message: str
    exit_code: int | None
    created: str
    scheduled: bool
    unschedulable_message: str


@dataclass(frozen=True, slots=True)
class NodeView:
    """The few facts about a node. `boot_id` changes when the machine restarts, even if the node never left Ready."""

    name: str
    uid: str
    ready: bool
    schedulable: bool
    boot_id: str
