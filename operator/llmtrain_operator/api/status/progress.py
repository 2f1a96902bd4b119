"""How far training is, and what of it is safe, as the members report it."""

from __future__ import annotations

from llmtrain_operator.api.record import StatusRecord
from llmtrain_operator.api.status.times import Time


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
