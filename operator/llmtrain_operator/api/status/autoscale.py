"""What spec.autoscale has seen and decided."""

from __future__ import annotations

from llmtrain_operator.api.record import StatusRecord
from llmtrain_operator.api.status.times import Time


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
    noise: float = 0.05
    """Relative deviation of a single one of them."""


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
