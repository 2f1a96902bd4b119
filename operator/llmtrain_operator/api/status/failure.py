"""What went wrong, and what was done about it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from llmtrain_operator.api.record import StatusRecord
from llmtrain_operator.api.status.times import Time


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
