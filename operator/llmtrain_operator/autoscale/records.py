"""What the autoscaler knows and says: frozen records. Pure.

Times are seconds since 1970, lengths of time are seconds, sizes are numbers of members.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

from llmtrain_operator.api import JobSpec
from llmtrain_operator.quantity import seconds

Reason = Literal[
    "Disabled",
    "Starting",
    "CapacityLost",
    "HigherPriority",
    "OutOfRange",
    "Resizing",
    "Measuring",
    "CoolingDown",
    "PauseShareSpent",
    "Growing",
    "Exploring",
    "Faster",
    "Inefficient",
    "AtCap",
    "NoCapacity",
    "NotWorthIt",
]
"""Why the target is what it is. The first seven follow from what happened, `CoolingDown` and `PauseShareSpent` hold a
change back, the next four are changes of the policy's own accord, and the last three say why there is none."""
REASONS: Final[tuple[Reason, ...]] = get_args(Reason)
OWN_ACCORD: Final[frozenset[Reason]] = frozenset({"Growing", "Exploring", "Faster", "Inefficient"})
"""Reasons of changes that only the policy asked for: cool-down and pause share count their pauses."""

Source = Literal["unknown", "nodes", "probe"]


@dataclass(frozen=True, slots=True)
class Sample:
    """How long steps took at one size. `steps`: how many are behind it; `time`: when the newest was seen; `noise`: the
    relative deviation of a single step, as far as it is known."""

    members: int
    step_seconds: float
    steps: int
    time: float
    noise: float = 0.05


@dataclass(frozen=True, slots=True)
class Loss:
    """Capacity went away at `time`, and room for `left` members of the job was left."""

    time: float
    left: int


@dataclass(frozen=True, slots=True)
class Capacity:
    """Room in the cluster, as far as this job is concerned.

    `more`: members that could be added to `Situation.size` now. `source`: what says so; `message`: the same as a
    clause. `claimed`: members of its present ones that jobs of higher priority need.
    """

    more: int = 0
    source: Source = "unknown"
    message: str = ""
    claimed: int = 0


@dataclass(frozen=True, slots=True)
class Limits:
    """What the user set. `cap` is nodes.desired, or what the global batch feeds if that is less."""

    minimum: int
    cap: int
    enabled: bool = True
    min_efficiency: float = 0.05
    max_pause_share: float = 0.05
    cool_down: float = 60.0


@dataclass(frozen=True, slots=True)
class Situation:
    """A job as the policy sees it.

    `size`: members in the round, 0 if none trains; one that is about to be back counts. `target`: members wanted now,
    None before the first decision. `steps_left`: None if the job does not say how long it goes on. `samples`: of its
    own steps, by size (`throughput.observed`). `prior`: what an estimate says of some sizes; only the shape counts once
    there are samples. `changed_at`: when the policy last changed the target of its own accord (`OWN_ACCORD`), and
    `changed_for` which of these it was. `pause_seconds`: how long training stands still for a change of size, measured,
    or a guess. `paused_seconds`: what such changes of its own accord took so far. `started_at`: when training began.
    `losses`: the newest, at most 16, oldest first.
    """

    size: int
    target: int | None
    steps_left: int | None = None
    samples: tuple[Sample, ...] = ()
    prior: tuple[Sample, ...] = ()
    capacity: Capacity = Capacity()
    changed_at: float | None = None
    changed_for: Reason | None = None
    pause_seconds: float = 5.0
    paused_seconds: float = 0.0
    started_at: float | None = None
    losses: tuple[Loss, ...] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """How many members are wanted and why. `speedup`: predicted speed at `target` over that at the present size; None
    where there is nothing to predict from, or nothing changes."""

    target: int
    reason: Reason
    message: str
    speedup: float | None = None


def limits(spec: JobSpec) -> Limits:
    """What this spec allows."""
    nodes, autoscale = spec.nodes, spec.autoscale
    cap = nodes.desired or nodes.maximum
    if spec.entrypoint is None:
        cap = max(nodes.min, min(cap, spec.training.global_batch_size // nodes.proc_per_node))
    return Limits(
        minimum=nodes.min,
        cap=cap,
        enabled=autoscale.enabled,
        min_efficiency=autoscale.min_efficiency,
        max_pause_share=autoscale.max_pause_share,
        cool_down=seconds(autoscale.cool_down),
    )
