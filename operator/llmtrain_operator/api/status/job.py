"""The status of an `LLMTrainJob`: all that the operator knows and must remember, written by it alone.

After a restart the operator goes on from here as if nothing had happened. Times are RFC 3339 strings.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from llmtrain_operator.api.record import Record, StatusRecord
from llmtrain_operator.api.spec import JobSpec
from llmtrain_operator.api.status.autoscale import AutoscaleStatus, StepTimesStatus
from llmtrain_operator.api.status.condition import Condition
from llmtrain_operator.api.status.failure import FailureStatus, IncidentStatus, RollbackStatus
from llmtrain_operator.api.status.goodput import HistoryStatus, SegmentStatus, TallyStatus
from llmtrain_operator.api.status.progress import CheckpointStatus, FlashStatus, ProgressStatus
from llmtrain_operator.api.status.round import LeavingNodeStatus, RoundStatus
from llmtrain_operator.api.status.times import Time
from llmtrain_operator.api.status.trust import (
    AvoidedNodeStatus,
    NodeFailureStatus,
    RejectionStatus,
    ReplacedStatus,
    StragglerStatus,
)

State = Literal[
    "Pending", "Invalid", "Starting", "Running", "Resizing", "Recovering", "Suspended", "Complete", "Failed"
]


class JobStatus(StatusRecord):
    """What the operator observed and decided."""

    observed_generation: int | None = None
    """Generation of the spec that this status is about."""
    state: State = "Pending"
    """One word for where the job is."""
    conditions: Annotated[
        tuple[Condition, ...],
        Field(json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}),
    ] = ()
    """What holds and what does not, with reasons."""
    round: RoundStatus | None = None
    """The current round; absent while none runs."""
    rounds: int = 0
    """Number of the newest round that was formed."""
    incarnations: dict[str, int] = Field(default_factory=dict)
    """Newest incarnation by member index."""
    nodes: str = ""
    """Members in the round / members wanted, such as 2/3."""
    spares: int | None = None
    """Spares that are ready to take a member's place; absent if none are asked for."""
    replicas: int = 0
    """Member pods that have not ended, spares not counted (for the scale subresource)."""
    selector: str = ""
    """Label selector of the member pods (for the scale subresource)."""
    target_nodes: int | None = None
    """Members wanted."""
    progress: ProgressStatus | None = None
    """How far training is."""
    flash: FlashStatus | None = None
    """Snapshots in memory; absent until a member has spoken of them."""
    checkpoint: CheckpointStatus | None = None
    """Durable checkpoints; absent until a member has spoken of them."""
    best_step: int = 0
    """Farthest step of earlier rounds; steps up to it are done again after a restart."""
    restarts: int = 0
    """Rounds that were lost."""
    failures_counted: int = 0
    """Restarts that used up recovery.maxRestarts."""
    streak: int = 0
    """How often in a row the same failure happened."""
    pod_failures: int = 0
    """Times that pods ended before they were in a round, since the last round."""
    ended_pods: tuple[str, ...] = ()
    """UIDs of pods that are still there although their loss was judged already."""
    rejections: tuple[RejectionStatus, ...] = ()
    """Members whose pods recovery.preflight rejected, until one of them joins."""
    leaving_nodes: tuple[LeavingNodeStatus, ...] = ()
    """Nodes that members are leaving, or have left, for as long as their taints are there."""
    create_after: Time | None = None
    """Back-off: no pod is created before."""
    last_failure: FailureStatus | None = None
    """The newest failure."""
    incidents: tuple[IncidentStatus, ...] = ()
    """The last ten incidents, the newest last."""
    node_failures: tuple[NodeFailureStatus, ...] = ()
    """What spoke against nodes during the last day, the newest last, at most 64."""
    avoided_nodes: tuple[AvoidedNodeStatus, ...] = ()
    """Nodes that new pods are kept off, at most 16."""
    rollbacks: tuple[RollbackStatus, ...] = ()
    """How often training went wrong and was taken back, the newest last; at most 16."""
    stragglers: tuple[StragglerStatus, ...] = ()
    """Members of the round that are slower than their peers, the slowest first, at most eight."""
    replaced: ReplacedStatus | None = None
    """The newest replacement of a straggler."""
    not_before: Time | None = None
    """Back-off: no round is formed before."""
    waiting_since: Time | None = None
    """Since when members are being waited for."""
    start_time: Time | None = None
    """When the operator first saw the job."""
    completion_time: Time | None = None
    """When the job became Complete or Failed."""
    goodput: str | None = None
    """Productive share of the time since the start, suspension not counted, such as 97.3%."""
    ledger: dict[str, float] = Field(default_factory=dict)
    """Seconds of the job's life by what they went to; the sum is the time since the start."""
    accelerator_ledger: dict[str, float] = Field(default_factory=dict)
    """The same in accelerator time: seconds times the workers that the job's pods have room for. One whose pod is in no
    round while others train is idle."""
    timeline: tuple[SegmentStatus, ...] = ()
    """The ledger in order of time, without gaps: at most 96 segments. Where there would be more the shortest ones are
    put together with others of their cause, so that sums stay right and places become rough."""
    history: HistoryStatus | None = None
    """Loss and pace over time; absent before the first step."""
    tally: TallyStatus = TallyStatus()
    """What the ledger still has to know of the time that is being booked."""
    ledger_time: Time | None = None
    """Up to when the ledger is booked."""
    incident_counts: dict[str, int] = Field(default_factory=dict)
    """How many incidents are over, by what began them."""
    lost_steps_total: int = 0
    """Committed steps that had to be done again after incidents."""
    autoscale: AutoscaleStatus | None = None
    """What spec.autoscale has decided; absent while it is not enabled."""
    step_times: StepTimesStatus | None = None
    """Step times by size, learned while spec.autoscale is enabled."""


class LLMTrainJob(Record):
    """A language-model training job that survives the loss of processes, pods and nodes."""

    api_version: Literal["llmtrain.io/v1alpha1"] = "llmtrain.io/v1alpha1"
    """llmtrain.io/v1alpha1"""
    kind: Literal["LLMTrainJob"] = "LLMTrainJob"
    """LLMTrainJob"""
    metadata: dict[str, Any] = Field(default_factory=dict)
    """Standard object metadata."""
    spec: JobSpec
    """What to train, on what, and how."""
    status: JobStatus = JobStatus()
    """What the operator observed and decided. Written by the operator alone."""
