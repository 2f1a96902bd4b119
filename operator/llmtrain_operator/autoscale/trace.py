"""What a simulation is given: a cluster over time, and the jobs in it. Pure; read from YAML or JSON.

All that happens is in the trace, also the noise (a hash of its seed), so every policy meets the same world.
"""

from __future__ import annotations

import hashlib
import math
from itertools import pairwise
from typing import Annotated, Final, Self

from pydantic import Field, model_validator

from llmtrain_operator.api.autoscale import Autoscale
from llmtrain_operator.api.record import Record
from llmtrain_operator.api.types import Count, CountOrZero, Fraction, NonNegative, Positive
from llmtrain_operator.autoscale.records import Limits
from llmtrain_operator.quantity import seconds

MOST_MEMBERS: Final = 1_000
Level = Annotated[int, Field(ge=0, le=MOST_MEMBERS)]


class StepTime(Record):
    """The true seconds per step by members n: shared / n + serial + perMember (n - 1). With `microBatches` the work is
    shared in so many pieces, so that n members take ceil(microBatches / n) of them each."""

    shared: Positive
    """Seconds that n members share."""
    serial: NonNegative = 0.0
    """Seconds that do not shrink."""
    per_member: NonNegative = 0.0
    """Seconds that every further member adds."""
    micro_batches: Count | None = None
    """Pieces that the work comes in. Default: as fine as it takes."""

    def seconds(self, members: int) -> float:
        """Of a step, at this size."""
        pieces = self.micro_batches
        part = 1 / members if pieces is None else math.ceil(pieces / members) / pieces
        return self.shared * part + self.serial + self.per_member * (members - 1)


class TraceJob(Record):
    """A job of a trace."""

    name: str
    """What it is called in the results."""
    steps: Count
    """Steps until it ends."""
    step_time: StepTime
    """How long a step takes."""
    min: Annotated[int, Field(ge=1, le=MOST_MEMBERS)] = 1
    """nodes.min"""
    max: Annotated[int, Field(ge=1, le=MOST_MEMBERS)]
    """nodes.max"""
    arrives: NonNegative = 0.0
    """Second in which it is created."""
    priority: int = 0
    """Its priority; no two jobs of a trace have the same."""
    pause: NonNegative = 5.0
    """Seconds that training stands still for a change of size."""
    recovery: NonNegative = 5.0
    """Seconds that it stands still after a fault or a lost node."""
    prepare: NonNegative = 0.0
    """Seconds until a new member's pod is ready; the others train meanwhile."""
    noise: Fraction = 0.0
    """Relative deviation of the speed, anew every tick."""
    autoscale: Autoscale = Autoscale(enabled=True)
    """spec.autoscale; `enabled` does not matter here."""

    @model_validator(mode="after")
    def _in_range(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) must not be greater than max ({self.max})")
        return self

    @property
    def limits(self) -> Limits:
        """As the policy gets them."""
        mine = self.autoscale
        return Limits(self.min, self.max, True, mine.min_efficiency, mine.max_pause_share, seconds(mine.cool_down))


class Trace(Record):
    """A cluster over time."""

    name: str
    """What it is called in the results."""
    description: str = ""
    """What it is about."""
    tick: Positive = 1.0
    """Seconds between two decisions; other times are rounded to it."""
    capacity: Annotated[tuple[tuple[NonNegative, Level], ...], Field(min_length=1)]
    """From which second on there is room for how many members, in order."""
    faults: tuple[NonNegative, ...] = ()
    """Seconds in which a worker of every job dies; no capacity is lost."""
    jobs: Annotated[tuple[TraceJob, ...], Field(min_length=1, max_length=16)]
    """The jobs that share it."""
    seed: CountOrZero = 0
    """Of the noise."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        times = [since for since, _ in self.capacity]
        if times[0] != 0 or any(left >= right for left, right in pairwise(times)):
            raise ValueError("capacity must begin at second 0 and be in order of time")
        for field in ("name", "priority"):
            if len({getattr(each, field) for each in self.jobs}) < len(self.jobs):
                raise ValueError(f"no two jobs may have the same {field}: which of them finishes first would be chance")
        return self

    def ticks(self, length: float) -> int:
        """A length of time in ticks, rounded up."""
        return math.ceil(length / self.tick - 1e-9)

    def room(self, ticks: int) -> list[int]:
        """Members that there is room for, in each of so many ticks."""
        found: list[int] = []
        for (_, members), until in zip(self.capacity, [*(since for since, _ in self.capacity[1:]), None], strict=True):
            end = ticks if until is None else min(ticks, self.ticks(until))
            found += [members] * (end - len(found))
        return found

    def strikes(self) -> frozenset[int]:
        """Ticks with a fault."""
        return frozenset(int(each / self.tick) for each in self.faults)

    def pace(self, job: TraceJob, tick: int) -> float:
        """By what the job's speed is off in this tick, at any size."""
        if not job.noise:
            return 1.0
        drawn = hashlib.sha256(f"{self.seed}/{job.name}/{tick}".encode()).digest()
        return max(0.1, 1.0 + job.noise * _normal(drawn))


def _normal(drawn: bytes) -> float:
    """About normally distributed: twelve uniform numbers."""
    return sum(int.from_bytes(drawn[2 * i : 2 * i + 2], "big") / 65536 for i in range(12)) - 6.0
