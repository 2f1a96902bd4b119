"""One pass of the control loop: what is known of a job -> its new status, what to do, what to tell its agents.

Pure, level-triggered and idempotent: the plan depends on the present alone, so a pass that was lost, repeated or
interrupted does no harm, and planning again after everything was carried out gives an empty plan. The order of the
ladder is: finished, invalid, suspended, round lost, round to be formed, round running.
"""

from __future__ import annotations

from llmtrain_operator.api import JobSpec, JobStatus
from llmtrain_operator.api.validation import Problem
from llmtrain_operator.conditions import seconds, timestamp
from llmtrain_operator.contract import names
from llmtrain_operator.goodput.booking import booked
from llmtrain_operator.plan.draft import Draft
from llmtrain_operator.plan.ends import finished, judge, suspend, suspending
from llmtrain_operator.plan.training import go_on, train
from llmtrain_operator.state import JobView, Observed, Plan

__all__ = ["plan"]

_UNREADABLE = JobSpec.model_construct()
"""Stands in for a spec that cannot be read: all defaults, nothing to train."""


def plan(
    job: JobView, spec: JobSpec | None, problems: tuple[Problem, ...], status: JobStatus, observed: Observed, now: float
) -> Plan:
    """What to do about `job` at `now` (seconds since 1970).

    `problems`: what is wrong with the spec, if anything; `spec` is None if it is so wrong that it cannot be read.
    """
    run = Draft(job, spec or _UNREADABLE, observed, now, status)
    if job.deleting:
        return run.done()
    _book(run)
    _identity(run)
    if status.completion_time:
        finished(run)
    else:
        judge(run, problems)
        _lead(run, invalid=bool(problems))
    return run.done()


def _lead(run: Draft, *, invalid: bool) -> None:
    idle = run.status.round is None and not run.observed.pods
    if invalid and idle:
        run.set(state="Invalid")
    elif suspending(run):
        suspend(run)
    elif invalid:
        go_on(run)
    else:
        train(run)


def _book(run: Draft) -> None:
    if run.status.completion_time:
        return
    pause_ends = seconds(run.status.not_before) if run.status.not_before else run.now
    for until in sorted({min(pause_ends, run.now), run.now}):
        run.set(**booked(run.status, run.observed.agents, until, run.paid_for))


def _identity(run: Draft) -> None:
    alive = sum(pod.usable for pod in run.observed.pods)
    spare = min(run.spec.nodes.spares + run.probing, max(0, alive - run.wanted))
    run.set(
        observed_generation=run.job.generation,
        selector=f"{names.LABEL_JOB}={run.job.name},{names.LABEL_COMPONENT}=member",
        replicas=alive - spare,
        start_time=run.status.start_time or timestamp(run.now),
    )
