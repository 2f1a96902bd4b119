"""Where the job's time went."""

from __future__ import annotations

from pydantic import Field

from llmtrain_operator.api.record import StatusRecord


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
