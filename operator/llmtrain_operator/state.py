"""What the operator knows about the world and what it decides: frozen records.

Pure. Job keys are `namespace/name` throughout, as in the wire messages; times are RFC 3339 strings as the API server
writes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llmtrain_operator.api import JobStatus
from llmtrain_operator.contract.wire import Directive, Report

Resources = tuple[tuple[str, int], ...]
"""Amounts by resource, in thousandths of its unit (of a CPU, a byte, a device), in order of their names."""


@dataclass(frozen=True, slots=True)
class PodView:
    """The few facts about a member's pod that decisions are made of.

    `job` is the job's name. `reason` and `message` say why the pod is not (or no longer) working, the most telling
    first: what was done to the pod (Evicted, NodeLost, PreemptionByScheduler, ...), how a container ended (OOMKilled,
    Error, ...), what one waits for (ImagePullBackOff, CreateContainerError, ...). Empty while all is well.
    `exit_code` is the trainer container's, once it has ended. `unschedulable_message` is the scheduler's or the gate's
    explanation while `scheduled` is False. `owner` is the UID of the controlling job object. `group_size`: how many
    members are scheduled together with it, 0 if it stands alone. `trainer`: the image that its agent and the trainer's
    library come from. `avoids`: names of the nodes that it was made to keep off. `requests`: what it asks of its node.
    `priority`: as admission filled it in.
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
    owner: str = ""
    group_size: int = 0
    trainer: str = ""
    avoids: tuple[str, ...] = ()
    requests: Resources = ()
    priority: int = 0

    @property
    def ended(self) -> bool:
        """Whether its containers have ended for good."""
        return self.phase in ("Failed", "Succeeded")

    @property
    def usable(self) -> bool:
        """Whether it is, or may still become, a member: it has not ended and is not being deleted."""
        return not (self.ended or self.deleting)


@dataclass(frozen=True, slots=True)
class NodeView:
    """The few facts about a node. `boot_id` changes when the machine restarts, even if the node never left Ready.
    `domains`: zone and rack, as far as its labels tell. `taints`: each as `key:Effect`. `accelerator_memory`: bytes
    of each of its accelerators, 0 if its labels do not tell. `allocatable`: what it offers to pods."""

    name: str
    uid: str
    ready: bool
    schedulable: bool
    boot_id: str
    domains: tuple[str, ...] = ("", "")
    taints: tuple[str, ...] = ()
    accelerator_memory: int = 0
    labels: tuple[tuple[str, str], ...] = ()
    allocatable: Resources = ()


@dataclass(frozen=True, slots=True)
class AgentView:
    """What is known of an agent. `silent_for` is in seconds: 0 while it is connected, and while the coordinator
    itself is away, because then nothing can be said about the agent. `failed_for`: seconds since it told of the
    failure in its report. `connected_for`: seconds since it came, while it is connected. `missed`: it is not, and its
    round stands still. `quiet`: seconds that it had been silent when that was noticed."""

    uid: str
    connected: bool
    silent_for: float
    detail: str
    report: Report | None = None
    failed_for: float = float("inf")
    connected_for: float = float("inf")
    missed: bool = False
    quiet: float = 0.0


@dataclass(frozen=True, slots=True)
class JobView:
    """The job object without its spec and status."""

    name: str
    namespace: str
    uid: str
    generation: int
    annotations: Mapping[str, str] = field(default_factory=dict)
    deleting: bool = False

    @property
    def key(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"

    @classmethod
    def of(cls, job: Mapping[str, Any]) -> JobView:
        """From the object as the API server has it."""
        metadata = job["metadata"]
        return cls(
            name=metadata["name"],
            namespace=metadata["namespace"],
            uid=metadata["uid"],
            generation=metadata.get("generation", 1),
            annotations=metadata.get("annotations") or {},
            deleting="deletionTimestamp" in metadata,
        )


@dataclass(frozen=True, slots=True)
class Obstacle:
    """What keeps the job's pods from being created. `reason` is PascalCase, `message` names the remedy."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Observed:
    """One look at the world around a job.

    `children_applied`: Service, budget and account are as they should be. `refused`: indexes whose pod the API server
    has just refused to create, with its words; they are left alone until they drop out of here. `domains`: zone and
    rack of the nodes that the pods are on, by name. `obstacle`: why no pod may be created at all. `can_avoid`: whether
    pods can be kept off a node. `leaving`: the nodes that are about to go, of those that the pods are on or were on,
    with the taint that says so, by name. `accelerator_memory`: bytes of each accelerator of the nodes that the pods are
    on, by name, where that is known. `room`: further members that nodes may have room for, None if that is not known.
    `claimed`: members whose nodes jobs of higher priority wait for. `claimants`: the jobs whose turn it is before this
    one asks for more.
    """

    pods: tuple[PodView, ...] = ()
    agents: Mapping[str, AgentView] = field(default_factory=dict)
    children_applied: bool = False
    refused: Mapping[int, str] = field(default_factory=dict)
    domains: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    obstacle: Obstacle | None = None
    can_avoid: bool = True
    leaving: Mapping[str, str] = field(default_factory=dict)
    accelerator_memory: Mapping[str, int] = field(default_factory=dict)
    room: int | None = None
    claimed: int = 0
    claimants: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ApplyChildren:
    """Bring Service, disruption budget and service account to what `manifests.children` says."""


@dataclass(frozen=True, slots=True)
class FillDesired:
    """Write `spec.nodes.desired`, absent so far: the one spec field that the operator defaults by a write."""

    value: int


@dataclass(frozen=True, slots=True)
class CreatePod:
    """Create the member pod of this index and incarnation, on none of the nodes to `avoid`; finding it there already is
    success."""

    index: int
    incarnation: int
    avoid: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DeletePod:
    """Delete this very pod (by UID), and say why. `grace`: seconds for a clean end, None: as many as it asks for."""

    name: str
    uid: str
    reason: str
    grace: int | None = None


@dataclass(frozen=True, slots=True)
class DeleteJob:
    """Delete the finished job: its time to live is over."""


Action = ApplyChildren | FillDesired | CreatePod | DeletePod | DeleteJob


@dataclass(frozen=True, slots=True)
class Event:
    """A Kubernetes event about the job. `reason` is PascalCase."""

    type: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What one pass decided. `status` is written first; `actions` and `directives` hold only if that succeeds."""

    status: JobStatus
    actions: tuple[Action, ...] = ()
    directives: Mapping[str, Directive] = field(default_factory=dict)
    events: tuple[Event, ...] = ()
    look_again: float | None = None
