"""The best that could have been done, with hindsight: dynamic programming over size and time on a trace. Pure.

The oracle knows all that will happen. In every tick it may change to any size that there is room for, at the same
pause as the policy, and is otherwise bound by the same world: recoveries after faults and lost capacity, and the pace
of each tick. It needs no time to prepare members, no samples, no cool-down and no efficiency. The work done by a tick
only depends on size and pause, so the most work that can have been done in each such state is all that has to be kept.
Its finish is therefore a true lower bound of that of any policy whose decisions fall on ticks; a property test races
random schedules against it. Where jobs share, it is bound by what the others held in the very run that it is compared
with: those of higher priority all they had, those of lower priority at most their minimum.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmtrain_operator.autoscale.trace import Trace, TraceJob

State = dict[int, dict[int, float]]
"""By tick in which the pause is over, by size: the most work done."""


def finish(trace: Trace, job: TraceJob, room: Sequence[int], patience: int) -> float | None:
    """The second in which the job could have ended. `room`: members that there is room for, by tick; the last one
    stays. `patience`: ticks after which it is given up."""
    start = trace.ticks(job.arrives)
    pause, recovery, strikes = trace.ticks(job.pause), trace.ticks(job.recovery), trace.strikes()
    rates = {n: 1.0 / job.step_time.seconds(n) for n in range(job.min, job.max + 1)}
    running: dict[int, float] = {}
    waiting: State = {start: {0: 0.0}}
    for tick in range(start, patience):
        now = room[min(tick, len(room) - 1)]
        _lose(running, waiting, now, recovery, tick)
        if tick in strikes:
            _strike(running, waiting, recovery, tick)
        _change(running, waiting, [n for n in rates if n <= now], pause, tick)
        for n, work in waiting.pop(tick, {}).items():
            running[n] = max(work, running.get(n, -1.0))
        ended = _work(running, rates, trace.pace(job, tick) * trace.tick, job.steps)
        if ended is not None:
            return tick * trace.tick + ended * trace.tick
    return None


def _lose(running: dict[int, float], waiting: State, room: int, recovery: int, tick: int) -> None:
    """Sizes that there is no room for any more are left: what remains of the job recovers, or waits for room."""
    for n in [n for n in running if n > room]:
        _keep(waiting, tick + recovery, room, running.pop(n))
    for ready in list(waiting):
        for n in [n for n in waiting[ready] if n > room]:
            _keep(waiting, max(ready, tick + recovery), room, waiting[ready].pop(n))


def _strike(running: dict[int, float], waiting: State, recovery: int, tick: int) -> None:
    for n in [n for n in running if n]:
        _keep(waiting, tick + recovery, n, running.pop(n))
    for ready in [ready for ready in waiting if ready < tick + recovery]:
        for n in [n for n in waiting[ready] if n]:
            _keep(waiting, tick + recovery, n, waiting[ready].pop(n))


def _change(running: dict[int, float], waiting: State, sizes: Sequence[int], pause: int, tick: int) -> None:
    """From wherever it is to any size: a pause, or the rest of the one that it is in if that is longer."""
    best: dict[int, float] = {tick + pause: max(running.values())} if running else {}
    for ready, states in waiting.items():
        if states:
            at = max(ready, tick + pause)
            best[at] = max(best.get(at, -1.0), max(states.values()))
    for at, work in best.items():
        for n in sizes:
            _keep(waiting, at, n, work)


def _keep(waiting: State, ready: int, n: int, work: float) -> None:
    states = waiting.setdefault(ready, {})
    states[n] = max(work, states.get(n, -1.0))


def _work(running: dict[int, float], rates: dict[int, float], length: float, steps: int) -> float | None:
    """A tick's work; the share of the tick after which the first of them is done, if one is."""
    ends = []
    for n, work in running.items():
        done = rates.get(n, 0.0) * length
        if work + done >= steps - 1e-9:
            ends.append((steps - work) / done)
        running[n] = work + done
    return min(ends, default=None)
