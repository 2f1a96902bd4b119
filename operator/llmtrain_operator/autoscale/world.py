"""What becomes of a trace under a policy: a discrete simulation. Pure.

In each tick, in this order: capacity is lost, and with it members of the jobs that are to have less (`sharing`), which
costs a recovery; a worker dies; each job, by priority, learns what it may have and decides; members that are ready
join, which costs a pause; and those who train do a tick's work. The policy sees of it what the operator sees: its own
steps' times, its capacity, what was lost. A pause that meets another lasts until the later one's end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from llmtrain_operator.autoscale.policy import decide
from llmtrain_operator.autoscale.records import OWN_ACCORD, Capacity, Decision, Limits, Loss, Reason, Sample, Situation
from llmtrain_operator.autoscale.sharing import Claim, share
from llmtrain_operator.autoscale.throughput import fit, measured, observed
from llmtrain_operator.autoscale.trace import Trace, TraceJob

MOST_TICKS: Final = 200_000
"""A trace that takes longer is not worth the wait."""
KEPT_LOSSES: Final = 16
LOOKS: Final = 6
"""Ticks after which a job is looked at although there is no news."""

Policy = Callable[[Situation, Limits, float], Decision]


@dataclass(frozen=True, slots=True)
class Change:
    """The policy changed its mind: at second `time`, from `size` members to those of the decision."""

    time: float
    size: int
    decision: Decision


@dataclass(frozen=True, slots=True)
class Course:
    """How a job went. `finish`: the second in which it ended, None if it did not. `held`: members that it occupied, by
    tick. `paused`: seconds of pauses of its own accord."""

    job: TraceJob
    finish: float | None
    held: tuple[int, ...]
    paused: float
    changes: tuple[Change, ...]

    @property
    def member_ticks(self) -> int:
        """Members times ticks: what it took."""
        return sum(self.held)


@dataclass(slots=True)
class _Life:
    """A job on its way."""

    job: TraceJob
    size: int = 0
    target: int | None = None
    joining_at: int | None = None
    ready_at: int = 0
    work: float = 0.0
    finish: float | None = None
    samples: tuple[Sample, ...] = ()
    losses: tuple[Loss, ...] = ()
    seen_time: float = 0.0
    seen_work: float = 0.0
    changed_at: float | None = None
    changed_for: Reason | None = None
    started_at: float | None = None
    paused: float = 0.0
    reach: int = 0
    news: tuple[object, ...] = ()
    held: list[int] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)

    @property
    def holds(self) -> int:
        """Members that it occupies: those that train, and those that get ready to."""
        return max(self.size, self.target or 0) if self.joining_at is not None else self.size


def simulate(trace: Trace, policy: Policy = decide, patience: int = MOST_TICKS) -> tuple[Course, ...]:
    """How the jobs go under `policy`, in the order of the trace, for at most `patience` ticks."""
    lives = [_Life(each) for each in trace.jobs]
    order = sorted(lives, key=lambda each: -each.job.priority)
    room, strikes = trace.room(patience), trace.strikes()
    table = _Table()
    for tick in range(patience):
        present = [each for each in order if each.finish is None and each.job.arrives <= tick * trace.tick + 1e-9]
        _run(trace, present, room[tick], tick, tick in strikes, policy, table)
        for each in lives:
            each.held.append(each.holds if each.finish is None else 0)
        if all(each.finish is not None for each in lives) or _stuck(trace, lives, tick):
            break
    return tuple(Course(e.job, e.finish, tuple(e.held), e.paused, tuple(e.changes)) for e in lives)


@dataclass(slots=True)
class _Table:
    """What each job is to have, as it was shared out last."""

    about: tuple[object, ...] = ()
    dues: dict[str, int] = field(default_factory=dict)

    def laid(self, present: Sequence[_Life], room: int, tick: int) -> dict[str, int]:
        about = (room, *((each.job.name, each.holds) for each in present))
        if about != self.about or tick % LOOKS == 0:
            self.about, self.dues = about, _dues(present, room)
        return self.dues


def _run(
    trace: Trace, present: Sequence[_Life], room: int, tick: int, strikes: bool, policy: Policy, table: _Table
) -> None:
    now = tick * trace.tick
    due = table.laid(present, room, tick)
    for each in reversed(present):
        _lose(trace, each, due[each.job.name], sum(other.holds for other in present) - room, tick)
    for each in present if strikes else ():
        if each.size:
            each.ready_at = max(each.ready_at, tick + trace.ticks(each.job.recovery))
    for each in present:
        free = room - sum(other.holds for other in present)
        _decide(trace, each, due[each.job.name], free, tick, policy)
        _join(trace, each, tick)
    for each in present:
        if each.size and tick >= each.ready_at:
            _work(trace, each, tick, now)


def _dues(present: Sequence[_Life], room: int) -> dict[str, int]:
    """What each job is to have."""
    if len(present) == 1:
        (only,) = present
        return {only.job.name: min(room, only.job.max) if room >= only.job.min else 0}
    return share([_claim(each) for each in present], room)


def _claim(life: _Life) -> Claim:
    job = life.job
    curve = fit(life.samples)
    return Claim(job.name, job.priority, job.arrives, job.min, job.max, life.holds, curve, job.autoscale.min_efficiency)


def _lose(trace: Trace, life: _Life, due: int, over: int, tick: int) -> None:
    """Take from a job what it is not due, as far as all together have more (`over`) than there is room for."""
    if due < life.reach:
        life.losses = (*life.losses, Loss(tick * trace.tick, due))[-KEPT_LOSSES:]
    life.reach = due
    if over <= 0 or life.holds == 0:
        return
    left = max(min(due, life.holds), life.holds - over)
    if life.joining_at is not None and left <= life.size:
        life.joining_at = None
    if left < life.size:
        life.size = left if left >= life.job.min else 0
        life.ready_at = max(life.ready_at, tick + trace.ticks(life.job.recovery))
        _unseen(life)
    elif life.joining_at is not None:
        life.target = left


def _decide(trace: Trace, life: _Life, due: int, free: int, tick: int, policy: Policy) -> None:
    now = tick * trace.tick
    more = max(0, min(due - life.holds, free)) + life.holds - life.size
    news = (life.size, life.target, more, due, len(life.losses), measured(life.samples, life.size))
    if news == life.news and tick % LOOKS:
        return
    life.news = news
    decision = policy(_situation(life, Capacity(more, "nodes", "", max(0, life.size - due))), life.job.limits, now)
    wanted = decision.target
    if wanted == (life.size if life.joining_at is None else life.target):
        life.target = wanted
        return
    if life.size == 0 and wanted > more:
        life.target, life.joining_at = wanted, None
        return
    life.changes.append(Change(now, life.size, decision))
    life.target = wanted
    if decision.reason in OWN_ACCORD:
        life.changed_at, life.changed_for = now, decision.reason
        life.paused += life.job.pause
    if wanted > life.size:
        life.joining_at = tick + trace.ticks(life.job.prepare)
    else:
        life.joining_at = None
        _resize(trace, life, tick, wanted)


def _join(trace: Trace, life: _Life, tick: int) -> None:
    if life.joining_at is not None and tick >= life.joining_at and life.target:
        life.joining_at = None
        _resize(trace, life, tick, life.target)


def _resize(trace: Trace, life: _Life, tick: int, size: int) -> None:
    if size != life.size:
        life.size = size
        life.ready_at = max(life.ready_at, tick + trace.ticks(life.job.pause))
        _unseen(life)


def _unseen(life: _Life) -> None:
    life.seen_time = life.seen_work = 0.0


def _work(trace: Trace, life: _Life, tick: int, now: float) -> None:
    job = life.job
    if life.started_at is None:
        life.started_at = now
    rate = trace.pace(job, tick) / job.step_time.seconds(life.size)
    if life.work + rate * trace.tick >= job.steps - 1e-9:
        life.finish = now + (job.steps - life.work) / rate
    life.work += rate * trace.tick
    life.seen_work += rate * trace.tick
    life.seen_time += trace.tick
    if life.seen_work >= 1.0 and (tick % LOOKS == 0 or not measured(life.samples, life.size)):
        each = life.seen_time / life.seen_work
        life.samples = observed(life.samples, life.size, each, int(life.seen_work), now)
        _unseen(life)


def _situation(life: _Life, capacity: Capacity) -> Situation:
    return Situation(
        size=life.size,
        target=life.target,
        steps_left=max(1, life.job.steps - int(life.work)),
        samples=life.samples,
        capacity=capacity,
        changed_at=life.changed_at,
        changed_for=life.changed_for,
        pause_seconds=life.job.pause,
        paused_seconds=life.paused,
        started_at=life.started_at,
        losses=life.losses,
    )


def _stuck(trace: Trace, lives: Sequence[_Life], tick: int) -> bool:
    """Whether nothing can change any more: no room to come, and nobody trains."""
    now, last = tick * trace.tick, max(trace.capacity[-1][0], *(each.job.arrives for each in lives))
    waits = max(each.job.prepare + each.job.pause + each.job.recovery for each in lives)
    return now > last + waits + trace.tick and all(each.size == 0 for each in lives if each.finish is None)


def fixed(members: int) -> Policy:
    """The job as it is without autoscaling, with nodes.desired at `members`: as many of them as there are."""

    def policy(situation: Situation, limits: Limits, now: float) -> Decision:
        room = situation.size + situation.capacity.more - situation.capacity.claimed
        wanted = max(limits.minimum, min(members, limits.cap, room))
        return Decision(wanted, "Disabled", f"as many of {members} as there is room for at {now:.0f}")

    return policy
