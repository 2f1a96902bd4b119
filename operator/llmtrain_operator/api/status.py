"""The status of an `LLMTrainJob`: all that the operator knows and must remember, written by it alone.

After a restart the operator goes on from here as if nothing had happened. Times are RFC 3339 strings.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from llmtrain_operator.api.record import Record, StatusRecord
from llmtrain_operator.api.spec import JobSpec

Time = Annotated[str, Field(json_schema_extra={"format": "date-time"})]
State = Literal[
    "Pending", "Invalid", "Starting", "Running", "Resizing", "Recovering", "Suspended", "Complete", "Failed"
]


class Condition(StatusRecord):
    """A metav1.Condition."""

    type: Annotated[str, Field(max_length=316)]
    """What it is about: Valid, Scheduled, Running, Recovering, Resizing, Suspended, Complete, Failed, Durable,
    Protected, Degraded, Straggling, Tracked, ObjectivesMet, PreflightPassed, Fits, Autoscaled."""
    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""
    reason: Annotated[str, Field(max_length=1024)]
    """Why, as one PascalCase word."""
    message: Annotated[str, Field(max_length=32768)] = ""
    """Why, as a sentence."""
    last_transition_time: Time
    """When status changed last."""
    observed_generation: int | None = None
    """Generation of the job that it was judged by."""


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


class HolderStatus(StatusRecord):
    """Where the snapshots of a member of the newest round lie."""

    uid: str
    """UID of its pod."""
    buddies: tuple[str, ...] = ()
    """UIDs of the pods that keep copies."""


class FlashStatus(StatusRecord):
    """Snapshots in memory, as the members report them."""

    step: int | None = None
    """Newest step of which every worker has a snapshot."""
    committed_step: int | None = None
    """Newest step that survives the loss of `copies` members; what a recovery goes on from."""
    copies: int = 0
    """Other members that keep a copy of each snapshot."""
    stall_seconds: float | None = None
    """How long training stands still for a snapshot."""
    size: int | None = None
    """Size of a snapshot over all workers, in bytes."""
    every: int | None = None
    """Steps between snapshots."""
    reason: str = ""
    """Why so many."""
    put_off: int = 0
    """Snapshots that were due in this round and not taken, because there was no memory for them yet."""
    trouble: str = ""
    """Why there are none; empty if there are."""
    round: int | None = None
    """The round that this is about."""
    holders: tuple[HolderStatus, ...] = ()
    """Where the snapshots of the newest round lie."""


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


class ProgressStatus(StatusRecord):
    """How far training is, as its rank 0 reports it."""

    step: int = 0
    """Optimizer steps done."""
    max_steps: int = 0
    """Optimizer steps to do."""
    loss: float | None = None
    """Mean training loss of the newest step, in nats per token."""
    validation_loss: float | None = None
    """Newest mean validation loss, in nats per token."""
    perplexity: float | None = None
    """exp(validationLoss)."""
    tokens_per_second: float | None = None
    """Tokens trained per second over all workers."""
    mfu: float | None = None
    """Estimated share of the hardware's peak arithmetic that the model uses, 0 to 1."""
    learning_rate: float | None = None
    """Learning rate of the newest step."""
    gradient_norm: float | None = None
    """Norm of the gradient before clipping."""
    step_seconds: float | None = None
    """Seconds per step."""
    phase: str = "loading"
    """loading, restoring, training, evaluating, saving, exporting or done."""
    eta: str | None = None
    """Estimated time left, such as 3m12s."""
    updated_at: Time | None = None
    """When this was last different."""


class CheckpointStatus(StatusRecord):
    """Durable checkpoints, as the members report them."""

    step: int | None = None
    """Step of the newest committed checkpoint; what a recovery loses is what was trained after it."""
    saved_at: Time | None = None
    """When the operator learned of it."""
    stall_seconds: float | None = None
    """How long training stood still for it."""
    save_seconds: float | None = None
    """How long it took until it was committed."""
    size: int | None = None
    """Its size in bytes."""
    error: str = ""
    """Why the newest attempt to save failed; empty when it did not."""
    error_reason: str = ""
    """The same as one PascalCase word."""
    restored_step: int | None = None
    """Step that the round restoredRound began at; absent if it began with fresh weights."""
    restored_from: str = ""
    """The checkpoint that it began from."""
    restore_seconds: float | None = None
    """How long reading it took."""
    restored_round: int | None = None
    """The newest round that is known to have begun, from a checkpoint or with fresh weights."""
    every: float | None = None
    """Most seconds between checkpoints, where durable.every is auto."""
    reason: str = ""
    """Why so many."""
    restored_tier: str = ""
    """The farthest place that a worker of the round restoredRound read from: memory, peer or durable."""


class FailureStatus(StatusRecord):
    """The newest failure, in the trainer's own words where there are any."""

    reason: str
    """What kind of failure, as one PascalCase word."""
    message: str = ""
    """The error."""
    traceback: str = ""
    """The end of the traceback."""
    member: int = -1
    """Index of the member that it happened on."""
    rank: int = -1
    """Rank of the worker; -1 if unknown."""
    step: int = 0
    """Step that it happened in."""
    exit_code: int | None = None
    """Exit code of the worker, if it exited."""
    signal: int | None = None
    """Signal that ended the worker, if one did."""
    time: Time | None = None
    """When the operator learned of it."""


class SamplesStatus(StatusRecord):
    """Places in the sequence of samples."""

    first: int
    """The first of them."""
    end: int
    """The first after them."""


class RollbackStatus(StatusRecord):
    """Training went wrong, and went on from an earlier step."""

    time: Time
    """When it was decided."""
    reason: str
    """NonFiniteLoss or LossSpike."""
    round: int
    """The round that it happened in."""
    step: int
    """Steps done when it happened."""
    to: int
    """The step that was gone back to, or a later one if the members had it."""
    attempt: int = 1
    """How often it happened at about this step. The first time the newest state is gone on from; the second time an
    older one, and what this round and those before it have reached beyond is never gone on from again."""
    skip: SamplesStatus | None = None
    """Samples that are left out since then."""


class IncidentStatus(StatusRecord):
    """A round that was lost, and what that cost. Times are in seconds since the fault; absent: not yet."""

    number: int
    """Counts the job's incidents from 1."""
    time: Time
    """When it happened, as far as that can be told."""
    kind: Literal["process", "node"]
    """Whose objective applies: a worker failed, or a pod, its node or its network went away."""
    reason: str
    """What kind of failure, as one PascalCase word."""
    message: str = ""
    """What was seen of it."""
    member: int = -1
    """Index of the member that it happened on."""
    round: int
    """Number of the round that was lost."""
    faults: int = 1
    """Rounds that were lost until training went on."""
    committed_step: int = 0
    """Newest step that was safe by then, or that was gone back to on purpose (see rollbacks)."""
    detect_seconds: float = 0.0
    """Until it was noticed."""
    round_seconds: float | None = None
    """Until the next round was published."""
    train_seconds: float | None = None
    """Until the next step was told of."""
    lost_steps: int | None = None
    """Safe steps that had to be done again; absent if a script of the user's does not tell where it went on."""
    outcome: Literal["", "Recovered", "Suspended", "Complete", "Failed"] = ""
    """How it ended; empty: it is not over. Only what recovered is judged by the objectives, and what failed."""
    badput: dict[str, float] = Field(default_factory=dict)
    """Seconds that it cost, by cause as in the ledger: from the fault until all that was done before is done again."""


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


class SegmentStatus(StatusRecord):
    """A stretch of the job's life that went to one cause."""

    cause: str
    """What it went to, as in the ledger."""
    start: float
    """Seconds from the job's start to its beginning."""
    seconds: float
    """How long it lasted."""


class HistoryStatus(StatusRecord):
    """How training went, at up to 96 moments, evenly thinned. All lists are equally long; the newest is the last."""

    times: tuple[float, ...] = ()
    """Seconds since the job's start."""
    steps: tuple[int, ...] = ()
    """Optimizer steps done by then; fewer than before where steps are done again."""
    losses: tuple[float, ...] = ()
    """Mean training loss of that step, in nats per token."""
    step_seconds: tuple[float, ...] = ()
    """Seconds that it took."""


class UnheardStatus(StatusRecord):
    """The end of a lost round, of which it is not yet known whether more steps were done than were told of."""

    step: int
    """The last step that was told of."""
    pace: float
    """Seconds per step of that round."""
    seconds: float
    """How much of the time until the loss was noticed more steps may have taken."""
    workers: int
    """Workers of the round."""


class TallyStatus(StatusRecord):
    """What the ledger still has to know of the time that is being booked."""

    round: int = 0
    """The round that `seconds` are of."""
    seconds: dict[str, float] = Field(default_factory=dict)
    """What the ledger has of this round, by cause: replaced as a whole whenever its members tell more."""
    lead: float | None = None
    """Seconds from the round's forming to its workers' start, as far as is known."""
    cause: str = "starting"
    """What the time goes to until the round trains: starting, restart, resize or drain."""
    doing: str = ""
    """What else is being waited for while there is no round: preflight or waiting."""
    before: dict[str, float] | None = None
    """The ledger at the newest fault, until what that cost is known."""
    unheard: UnheardStatus | None = None
    """The end of the round before, until this one tells where it went on."""


class StepTimeStatus(StatusRecord):
    """How long steps took at one size."""

    members: int
    """Members of the rounds that it was measured in."""
    step_seconds: float
    """Seconds per step."""
    steps: int
    """How many steps are behind it."""
    time: Time
    """When the newest of them was seen."""


class StepTimesStatus(StatusRecord):
    """Step times by size, as learned from the job's own steps."""

    sizes: tuple[StepTimeStatus, ...] = ()
    """By size, at most 32."""
    round: int = 0
    """The round that is being watched."""
    first_step: int = 0
    """The first step that was seen of it; those right after it are warming up and do not count."""
    step: int = 0
    """The newest step that was seen of it."""
    told_at: Time | None = None
    """When that was."""
    recent: tuple[float, ...] = ()
    """Seconds of single steps that are not in sizes yet."""


class CapacityLossStatus(StatusRecord):
    """Room for members went away."""

    time: Time
    """When that was judged."""
    left: int
    """Members that there was still room for."""


class ProbeStatus(StatusRecord):
    """Pods beyond the members wanted that are there to see whether they get nodes."""

    members: int
    """How many."""
    since: Time
    """Since when."""
    room: int | None = None
    """Members that there seemed to be room for then; absent if that was not known."""


class ProbeRefusedStatus(StatusRecord):
    """The newest probe that got no nodes. It is not repeated until there is more room, or some time has passed."""

    room: int
    """Members that there seemed to be room for."""
    time: Time
    """When it was given up."""


class ScalingStatus(StatusRecord):
    """A change of the members wanted, and what it brought."""

    time: Time
    """When it was decided."""
    from_nodes: int
    """Members before."""
    to_nodes: int
    """Members wanted since then."""
    reason: str
    """Why, as one PascalCase word."""
    message: str = ""
    """Why, as a sentence."""
    predicted_speedup: float | None = None
    """Speed that was expected, over the one before."""
    achieved_speedup: float | None = None
    """Speed that was measured, over the one before."""
    pause_seconds: float | None = None
    """How long training stood still for it."""
    restarts: int = 0
    """Rounds that had been lost by then: a fault in between spoils the measurement."""


class AutoscaleStatus(StatusRecord):
    """What spec.autoscale has decided, and why. The members wanted are in targetNodes."""

    reason: str = ""
    """Why that many, as one PascalCase word."""
    message: str = ""
    """Why, as a sentence, as of when that became so."""
    started_at: Time | None = None
    """When training began under it."""
    changed_at: Time | None = None
    """When it last changed the size of its own accord."""
    short_since: Time | None = None
    """Since when fewer pods than wanted have nodes."""
    pause_seconds: float | None = None
    """How long training usually stands still for a change of size."""
    paused_seconds: float = 0.0
    """How long it stood still in all for changes of its own accord."""
    losses: tuple[CapacityLossStatus, ...] = ()
    """The newest losses of capacity, at most 16."""
    probe: ProbeStatus | None = None
    """The probe that is under way."""
    refused: ProbeRefusedStatus | None = None
    """The newest probe that was in vain."""
    last: ScalingStatus | None = None
    """The newest change."""


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
