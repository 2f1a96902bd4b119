"""How many members evictions have to leave alone: what the job's disruption budget says. Pure.

Guarantee: while a job trains, one member at a time may be evicted, and the next one as soon as there is a round without
it, also where no replacement can be had: a budget that counts from the wanted size would then block drains for ever.
Members that wait for others hold on to what only they have in memory, but not for ever either.
"""

from __future__ import annotations

from llmtrain_operator.api import JobSpec, JobStatus
from llmtrain_operator.conditions import seconds
from llmtrain_operator.plan.draft import Draft
from llmtrain_operator.plan.flash import covered, keepers, living, restorable
from llmtrain_operator.state import JobView, Observed

PATIENCE = 600.0
"""Seconds for which members that wait for others are kept from being evicted for what is in their memory."""


def staying(job: JobView, spec: JobSpec, status: JobStatus, observed: Observed, now: float) -> int:
    """`minAvailable` of the job's disruption budget.

    Counted from the pods that are ready, as evictions count them, so that a newcomer makes nobody else dispensable.
    """
    run = Draft(job, spec, observed, now, status)
    if status.completion_time or (status.round is None and not _holds_on(run)):
        return 0
    ready = sum(pod.ready and not pod.deleting for pod in observed.pods)
    return ready if _in_the_midst(run) else max(0, ready - 1)


def _in_the_midst(run: Draft) -> bool:
    """Whether the loss of one more would be one too many: another is just leaving, or each has what nobody else has."""
    stored = run.status.round
    if stored is not None:
        here = {uid for uid, pod in run.pods.items() if pod.usable}
        return any(member.uid not in here for member in stored.members if not member.succeeded)
    flash, there = run.status.flash, living(run)
    return flash is not None and not all(covered(flash, there - {uid}) for uid in keepers(run))


def _holds_on(run: Draft) -> bool:
    """Whether members that are in no round have something in memory that is worth waiting for."""
    step, since = restorable(run), run.status.waiting_since
    if step is None or since is None or run.now - seconds(since) >= PATIENCE:
        return False
    return run.checkpoint_step is None or run.checkpoint_step < step
