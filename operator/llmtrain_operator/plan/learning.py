"""What an autoscaled job's own steps tell: how long they take at each size, and what a change of size cost and brought.

Step times are medians of a few single steps, so that one that waited for storage or an evaluation does not count. The
first steps of a round are left out.
"""

from __future__ import annotations

from statistics import median
from typing import Final

from llmtrain_operator.api import (
    AutoscaleStatus,
    JobSpec,
    JobStatus,
    ProgressStatus,
    ScalingStatus,
    StepTimesStatus,
    StepTimeStatus,
)
from llmtrain_operator.autoscale.records import OWN_ACCORD, Sample
from llmtrain_operator.autoscale.throughput import observed
from llmtrain_operator.conditions import seconds, timestamp
from llmtrain_operator.contract.wire import Round
from llmtrain_operator.estimate.prior import step_seconds
from llmtrain_operator.plan.draft import Draft

WARM_UP: Final = 5
"""First steps of a round that do not count."""
AT_ONCE: Final = 5
"""Single steps that one median is made of."""
_FRESH: Final = 0.5
"""Weight of the newest pause in what a pause usually takes."""


def samples(status: JobStatus) -> tuple[Sample, ...]:
    """What was learned so far."""
    sizes = status.step_times.sizes if status.step_times else ()
    return tuple(Sample(s.members, s.step_seconds, s.steps, seconds(s.time), s.noise) for s in sizes)


def prior(spec: JobSpec) -> tuple[Sample, ...]:
    """What the estimate says of the ends and the middle of the range; nothing of a script of the user's."""
    least, most = spec.nodes.min, spec.nodes.maximum
    told = ((n, step_seconds(spec, n)) for n in sorted({least, (least + most) // 2, most}))
    return tuple(Sample(n, guess, 1, 0.0) for n, guess in told if guess)


def learn(run: Draft) -> None:
    """Take in the newest step, if there is one that was not seen yet."""
    current, told = run.round, run.status.progress
    if current is None or told is None or told.phase != "training" or not told.step_seconds or not told.updated_at:
        return
    known = run.status.step_times or StepTimesStatus()
    if known.round != current.number:
        _resumed(run, current, known, told)
        fresh = {"round": current.number, "first_step": told.step, "recent": ()}
        known = known.model_copy(update={**fresh, "step": told.step, "told_at": told.updated_at})
    elif told.step != known.step:
        known = known.model_copy(update={"step": told.step, "told_at": told.updated_at})
        if told.step - known.first_step >= WARM_UP:
            known = _with(run, current, known, told.step_seconds)
    run.set(step_times=known)


def _with(run: Draft, current: Round, known: StepTimesStatus, newest: float) -> StepTimesStatus:
    recent = (*known.recent, newest)
    if len(recent) < AT_ONCE:
        return known.model_copy(update={"recent": recent})
    size, typical = len(current.members), median(recent)
    _compare(run, size, typical)
    found = observed(samples(run.status), size, typical, len(recent), run.now)
    return known.model_copy(update={"recent": (), "sizes": tuple(map(_kept, found))})


def _kept(sample: Sample) -> StepTimeStatus:
    return StepTimeStatus(
        members=sample.members,
        step_seconds=round(sample.step_seconds, 5),
        steps=sample.steps,
        time=timestamp(sample.time),
        noise=round(sample.noise, 4),
    )


def _resumed(run: Draft, current: Round, before: StepTimesStatus, told: ProgressStatus) -> None:
    """A round has done its first steps: how long training stood still, if that was for a change of size."""
    state, last = run.status.autoscale, _newest(run, len(current.members))
    if state is None or last is None or last.pause_seconds is not None or not before.told_at or not told.updated_at:
        return
    # The first step of a round takes longer than others: that is part of the pause.
    usual = next(
        (s.step_seconds for s in samples(run.status) if s.members == last.from_nodes), told.step_seconds or 0.0
    )
    worked = max(1, told.step - before.step) * min(usual, told.step_seconds or 0.0)
    pause = round(max(0.0, seconds(told.updated_at) - seconds(before.told_at) - worked), 3)
    mean = pause if state.pause_seconds is None else _FRESH * pause + (1 - _FRESH) * state.pause_seconds
    own = pause if last.reason in OWN_ACCORD else 0.0
    paused = round(state.paused_seconds + own, 3)
    _record(run, state, last, {"pause_seconds": pause}, pause_seconds=round(mean, 3), paused_seconds=paused)


def _compare(run: Draft, size: int, now: float) -> None:
    """A change of size is measured: what it brought, beside what was predicted."""
    state, last = run.status.autoscale, _newest(run, size)
    before = next((s.step_seconds for s in samples(run.status) if last and s.members == last.from_nodes), None)
    if state is None or last is None or last.achieved_speedup is not None or before is None:
        return
    speedup = round(before / now, 3)
    _record(run, state, last, {"achieved_speedup": speedup})
    predicted = f"predicted {last.predicted_speedup:.2f}x, " if last.predicted_speedup else ""
    pause = f"; training stood still for {last.pause_seconds:.1f} s" if last.pause_seconds is not None else ""
    sizes = f"{last.from_nodes} to {last.to_nodes} members"
    run.tell("AutoscaleMeasured", f"{sizes}: {predicted}achieved {speedup:.2f}x the speed{pause}")


def _newest(run: Draft, size: int) -> ScalingStatus | None:
    """The newest change if it led to this size, and no fault has come in between."""
    last = run.status.autoscale.last if run.status.autoscale else None
    return last if last and last.to_nodes == size and last.restarts == run.status.restarts else None


def _record(run: Draft, state: AutoscaleStatus, last: ScalingStatus, found: dict[str, float], **usual: float) -> None:
    run.set(autoscale=state.model_copy(update={"last": last.model_copy(update=found), **usual}))
