"""A trace judged: the policy beside the oracle and beside fixed sizes. Pure.

Regret is the time from a job's arrival to its end, over that of the oracle, less one. Fixed sizes are the job without
autoscaling, `nodes.desired` at its minimum or maximum, sharing in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llmtrain_operator.autoscale import oracle
from llmtrain_operator.autoscale.policy import decide
from llmtrain_operator.autoscale.trace import MOST_MEMBERS, Trace
from llmtrain_operator.autoscale.world import Course, Policy, fixed, simulate


@dataclass(frozen=True, slots=True)
class Verdict:
    """A job of a trace. Seconds from its arrival to its end; None: it did not end, with a fixed size not in twice the
    time. `member_seconds`: members times seconds."""

    trace: str
    course: Course
    seconds: float | None
    oracle: float | None
    smallest: float | None
    largest: float | None
    member_seconds: float
    largest_member_seconds: float

    @property
    def regret(self) -> float | None:
        """Over the oracle, as a share."""
        return self.seconds / self.oracle - 1.0 if self.seconds and self.oracle else None

    @property
    def over_fixed(self) -> float | None:
        """Over the better one of the fixed sizes, as a share; negative: faster."""
        known = [each for each in (self.smallest, self.largest) if each is not None]
        return self.seconds / min(known) - 1.0 if self.seconds and known else None

    def as_record(self) -> dict[str, Any]:
        """For JSON, rounded."""
        figures = {
            "seconds": self.seconds,
            "oracleSeconds": self.oracle,
            "regret": self.regret,
            "fixedMinSeconds": self.smallest,
            "fixedMaxSeconds": self.largest,
            "overBestFixed": self.over_fixed,
            "memberSeconds": self.member_seconds,
            "fixedMaxMemberSeconds": self.largest_member_seconds,
            "pausedSeconds": self.course.paused,
        }
        rounded = {name: None if value is None else round(value, 4) for name, value in figures.items()}
        changes = [
            {"second": each.time, "from": each.size, "to": each.decision.target, "reason": each.decision.reason}
            for each in self.course.changes
        ]
        return {"trace": self.trace, "job": self.course.job.name, **rounded, "changes": changes}


def judge(trace: Trace, policy: Policy = decide) -> tuple[Verdict, ...]:
    """Of every job of a trace."""
    courses = simulate(trace, policy)
    patience = 2 * len(courses[0].held)
    smallest, largest = simulate(trace, fixed(1), patience), simulate(trace, fixed(MOST_MEMBERS), patience)
    found = []
    for index, course in enumerate(courses):
        room = _room(trace, courses, index)
        best = oracle.finish(trace, course.job, room, len(course.held))
        found.append(
            Verdict(
                trace.name,
                course,
                _took(course, course.finish),
                _took(course, best),
                _took(course, smallest[index].finish),
                _took(course, largest[index].finish),
                course.member_ticks * trace.tick,
                largest[index].member_ticks * trace.tick,
            )
        )
    return tuple(found)


def _took(course: Course, finish: float | None) -> float | None:
    return None if finish is None else finish - course.job.arrives


def _room(trace: Trace, courses: tuple[Course, ...], index: int) -> list[int]:
    """What there was for one of them, by tick: what the others had is not its own, but for what is beyond the minimum
    of those of lower priority."""
    mine, ticks = courses[index].job, len(courses[index].held)
    room = trace.room(ticks)
    for other in courses:
        if other.job.name == mine.name:
            continue
        above = other.job.priority > mine.priority
        for tick, held in enumerate(other.held):
            room[tick] -= held if above else min(held, other.job.min)
    return [max(0, each) for each in room]
