"""The messages between agent, coordinator and controller.

One JSON object per WebSocket message. Every message carries its whole state rather than a change, so that a lost
or repeated one does no harm: an agent sends `Report`s (each is also its heartbeat), the coordinator sends the
`Directive` that currently holds. Unknown fields are ignored, so that either end may be one minor version older.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

WIRE_VERSION = 1

AgentState = Literal["joining", "running", "succeeded", "failed", "stopped"]
Action = Literal["wait", "run", "save", "stop"]
STEP_BOUNDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0, 120.0)
"""Upper ends of the classes of durations that a worker's steps are counted by, in seconds."""
Phase = Literal["loading", "restoring", "training", "evaluating", "saving", "exporting", "done"]
BEFORE_TRAINING: Final[frozenset[Phase]] = frozenset({"loading", "restoring"})
"""Phases in which a worker does not yet know where training goes on."""


@dataclass(frozen=True, slots=True)
class Member:
    """One member of a round. Its rank is its place in `Round.members`.

    `flash_port`: where its agent hands out snapshots and takes in copies of them, 0: nowhere.
    """

    index: int
    incarnation: int
    pod: str
    uid: str
    host: str
    store_port: int
    flash_port: int = 0


@dataclass(frozen=True, slots=True)
class Samples:
    """Places in the endless sequence of samples: `first` up to, and without, `end`."""

    first: int
    end: int


@dataclass(frozen=True, slots=True)
class Void:
    """What rounds up to number `round` reached beyond `step` is not to be gone on from."""

    step: int
    round: int


@dataclass(frozen=True, slots=True)
class Avoid:
    """What training was rolled back from. `skip`: samples that are trained on no more, in no order, perhaps
    overlapping."""

    skip: tuple[Samples, ...] = ()
    void: tuple[Void, ...] = ()

    def voids(self, step: int, round_number: int) -> bool:
        """Whether the state after `step`, as that round had it, is not to be gone on from."""
        return any(step > each.step and round_number <= each.round for each in self.void)


NOTHING: Final = Avoid()
"""There is nothing to avoid."""


@dataclass(frozen=True, slots=True)
class Round:
    """A membership generation. `number` only grows and fences everything older.

    `buddies`: for each member the ranks of those who should keep copies of its snapshots, the best first. `key`: what
    members prove themselves to each other with; the coordinator makes it, it is in no status. `mtbf`: mean seconds
    between failures of the job so far, None if it had none. `avoid`: what the job was rolled back from.
    """

    number: int
    members: tuple[Member, ...]
    procs_per_member: int
    buddies: tuple[tuple[int, ...], ...] = ()
    key: str = ""
    mtbf: float | None = None
    avoid: Avoid = NOTHING

    @property
    def world_size(self) -> int:
        """Number of workers over all members."""
        return len(self.members) * self.procs_per_member

    def rank_of(self, uid: str) -> int | None:
        """The member rank of the pod with this UID, None if it is not in the round."""
        return next((rank for rank, member in enumerate(self.members) if member.uid == uid), None)


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """What a worker knows of durable checkpoints. Times are in seconds, sizes in bytes.

    `step`: newest step whose checkpoint is committed, None if there is none. `error` and `error_reason`
    (`names.REASON_STORAGE_*`): why the newest attempt failed, empty when it did not; `failed_step`: its step.
    `restored_step`: where this round began, None: at step 0 with fresh weights; `restored_from`: the checkpoint's URI.
    `skipped`: damaged checkpoints that were passed over then, each as `NAME: why`. `every`: most seconds between saves,
    where they were chosen, and `reason` why. `restored_tier`: the farthest of `names.TIERS` that this worker read from,
    empty if it read nothing.
    """

    step: int | None = None
    stall_seconds: float | None = None
    save_seconds: float | None = None
    size: int | None = None
    error: str = ""
    error_reason: str = ""
    failed_step: int | None = None
    restored_step: int | None = None
    restored_from: str = ""
    restore_seconds: float | None = None
    skipped: tuple[str, ...] = ()
    every: float | None = None
    reason: str = ""
    restored_tier: str = ""


@dataclass(frozen=True, slots=True)
class Flash:
    """What a worker knows of snapshots in memory. Times are in seconds, `size` in bytes over all workers.

    `step`: the newest that every worker has taken. `committed`: the newest that the members can restore together after
    the loss of `copies` of them; None: none of this round yet. `kept_by`: ranks of the members that have copies of this
    worker's. `kept`: what this round began from, if that is still in memory. `every`: steps between snapshots, and
    `reason` why. `put_off`: how many were due in this round and not taken for want of memory. `trouble`: why there are
    none, empty if there are.
    """

    step: int | None = None
    committed: int | None = None
    copies: int = 0
    kept_by: tuple[int, ...] = ()
    kept: int | None = None
    stall_seconds: float | None = None
    size: int | None = None
    every: int | None = None
    reason: str = ""
    put_off: int = 0
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a worker is: medians over its last steps, in seconds. `own`: its part of a step without its waiting for
    others or for data; `step`: the whole step, which takes all workers equally long."""

    rank: int
    own: float
    step: float


@dataclass(frozen=True, slots=True)
class Spent:
    """What a worker's time in this round went to, in seconds that only grow, each counted once: the sum is the time
    from its start to its last step, or to the last change of its phase.

    `steps`: how many it has done. `stepping`: in these, without its waiting for `data`, and without its standing still
    for `snapshots` in memory and for `durable` checkpoints. The others are phases.
    """

    steps: int = 0
    loading: float = 0.0
    restoring: float = 0.0
    stepping: float = 0.0
    data: float = 0.0
    snapshots: float = 0.0
    durable: float = 0.0
    evaluating: float = 0.0
    saving: float = 0.0
    exporting: float = 0.0


@dataclass(frozen=True, slots=True)
class Durations:
    """How long this round's steps have taken, all of them, whether or not their reports arrived. `counts`: steps up to
    each of `STEP_BOUNDS` and beyond the one before it, the last ones beyond all; `seconds`: of all together."""

    counts: tuple[int, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Tracking:
    """What rank 0 knows of its trackers. `kept`: each has kept something. `error` and `reason`: what is wrong with some
    of them, empty where nothing is."""

    kept: bool = False
    reason: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class Progress:
    """What a worker says about training. Times are in seconds; `loss` is the mean over the global batch, in nats.

    `pace`: None until it has taken enough steps, and where it cannot be measured. `spent`: None from older trainers.
    `durations`: for the member's metrics; an agent passes them on to nobody.
    """

    rank: int
    round: int
    phase: Phase = "training"
    step: int = 0
    max_steps: int = 0
    epoch: float = 0.0
    loss: float | None = None
    validation_loss: float | None = None
    perplexity: float | None = None
    learning_rate: float | None = None
    gradient_norm: float | None = None
    step_seconds: float | None = None
    data_wait_seconds: float | None = None
    tokens_per_second: float | None = None
    mfu: float | None = None
    checkpoints: Checkpoints | None = None
    flash: Flash | None = None
    pace: Pace | None = None
    spent: Spent | None = None
    durations: Durations | None = None
    tracking: Tracking | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """How a worker ended, in the trainer's own words. `reason` is one of `names.REASON_*`. `lasted`: seconds that it
    had been of no use by then. `samples`: those that it may be due to, where the trainer knows."""

    reason: str
    message: str
    round: int
    rank: int = -1
    step: int = 0
    exit_code: int | None = None
    signal: int | None = None
    traceback: str = ""
    lasted: float = 0.0
    samples: Samples | None = None


@dataclass(frozen=True, slots=True)
class Preflight:
    """What an agent has found out about its node: the better, the higher a figure; None: not measured.

    `attempt`: the check that this is from, 0: none yet. `matmul` in TFLOP/s and `memory` in GB/s, each of the slowest
    device; `network` in MB/s of an all-reduce with `neighbour`, 0 if there was none to be had; `disk` in MB/s. `error`:
    why there are no figures. `port` and `key`: where and how others measure their network against this agent.
    """

    attempt: int = 0
    device: str = ""
    matmul: float | None = None
    memory: float | None = None
    network: float | None = None
    disk: float | None = None
    neighbour: str = ""
    seconds: float = 0.0
    error: str = ""
    port: int = 0
    key: str = ""


@dataclass(frozen=True, slots=True)
class Neighbour:
    """An agent to measure the network against: `port` and `key` are from its `Preflight`."""

    pod: str
    host: str
    port: int
    key: str


@dataclass(frozen=True, slots=True)
class Check:
    """What an agent is to measure of its node before it may join. `attempt` counts from 1. `neighbour`: None if there
    is none to measure the network against."""

    attempt: int
    neighbour: Neighbour | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """An agent's whole state, sent on every change and at least once per heartbeat interval.

    `round` is the round that the agent's workers are in, or were in last (0: none yet). In state "joining" the agent
    has no workers and is ready for a round newer than `round`. `store_port` names a listening store that no round has
    used yet, 0 if there is none: a joining agent always has one, a running one may. `flash_port`: see `Member`.
    `progress` is of that round: the workers' last word stays until a later round runs. So are the `paces`, of all of
    the member's workers that have told theirs, by rank.
    `failure` is the newest failure of its workers, kept until a round later than `failure.round` runs.
    `preflight`: None if this agent measures nothing.
    `leaving`: who told the pod to end, where it was not the operator (the signal's name); its workers save and leave.
    """

    job: str
    pod: str
    uid: str
    index: int
    incarnation: int
    host: str
    state: AgentState
    round: int = 0
    store_port: int = 0
    progress: Progress | None = None
    failure: Failure | None = None
    flash_port: int = 0
    preflight: Preflight | None = None
    paces: tuple[Pace, ...] = ()
    leaving: str = ""
    version: int = WIRE_VERSION


@dataclass(frozen=True, slots=True)
class Directive:
    """What an agent should be doing.

    `run`: be in `round`. `wait`: be in no round: end the workers at once if there are any, and join. `save`: be in no
    round, but let the workers end by themselves at a step boundary, once their state is in durable storage. `stop`: end
    the workers with grace, then exit. Without any directive (the coordinator has just started, say) an agent goes on.
    `persist`, with `stop`: the UID of the pod that is to bring what is in the members' memory to durable storage before
    it exits; the others hand out theirs until then. Empty: there is nothing that is not there already. `check`, with
    `wait`: what is to be measured meanwhile, once.
    """

    action: Action
    reason: str
    round: Round | None = None
    persist: str = ""
    check: Check | None = None
    version: int = WIRE_VERSION


@dataclass(frozen=True, slots=True)
class AgentUpdate:
    """Coordinator to controller: an agent's newest report and whether it is there.

    `connected` False means that the connection closed or heartbeats stopped; `detail` says which. `missed`: since then
    its round stands still, though its other members are there. `quiet`: seconds since it was last heard, unless it is
    connected. The identity (`namespace`, `uid`) comes from the agent's token, not from its words.
    """

    namespace: str
    uid: str
    connected: bool
    detail: str
    report: Report | None = None
    missed: bool = False
    quiet: float = 0.0


@dataclass(frozen=True, slots=True)
class Publish:
    """Controller to coordinator: the directives of all of a job's pods, by pod UID. Replaces what it said before."""

    job: str
    directives: dict[str, Directive]
