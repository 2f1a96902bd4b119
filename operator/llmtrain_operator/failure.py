"""What happened to a round, and what to do about it: the recovery ladder as far as this version climbs it.

Pure. Of several workers' last words the root cause is chosen, because one death makes its neighbours fail too; then
the verdict is to go on (perhaps after a pause) or to fail the job, always with a reason a person can act on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from llmtrain_operator.contract import names
from llmtrain_operator.contract.wire import Failure

BACKOFF_FIRST = 1.0
BACKOFF_LIMIT = 60.0
SETTLING = 2.0
"""Seconds in which the cause of a failure that looks like a consequence may still be reported."""
CALM = 600.0
"""Seconds after which the loss of another pod is not held to have the same cause as the one before."""
_INFRASTRUCTURE = frozenset(
    {
        names.REASON_POD_LOST,
        names.REASON_FENCED,
        names.REASON_STORAGE_FULL,
        names.REASON_STORAGE_READ_ONLY,
        names.REASON_STORAGE_DENIED,
        names.REASON_STORAGE_MISSING,
        names.REASON_STORAGE_UNREACHABLE,
    }
)
"""Not the job's own doing, however often: never counted, tried again ever more slowly."""
_CERTAIN = names.PERMANENT_REASONS | names.NUMERIC_REASONS
"""All workers find these themselves, and a restart by itself does not cure them."""
_COLLECTIVE = re.compile(
    r"connection (closed|reset|refused)|broken pipe|gloo|nccl|process ?group|socket timeout|tcpstore", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class History:
    """What the job went through before: `restarts` spent of the budget, and the streak of identical failures.

    `calm_for`: seconds since the last one.
    """

    restarts: int
    streak: int
    last: Failure | None
    calm_for: float = 0.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """Go on or fail. `pause` is in seconds; `counts` says whether it uses up the user's budget of restarts."""

    fatal: bool
    reason: str
    message: str
    pause: float
    counts: bool
    streak: int


def is_secondary(failure: Failure) -> bool:
    """Whether a worker most likely failed because a peer was gone: its error is one of communication."""
    if failure.reason == names.REASON_PEER_LOST:
        return True
    return failure.reason == names.REASON_USER_ERROR and bool(_COLLECTIVE.search(failure.message))


def root_cause(failures: Iterable[Failure]) -> Failure | None:
    """The failure that explains the others: permanent ones first, then signals, then errors, then lost peers."""

    def weight(failure: Failure) -> tuple[int, int]:
        if failure.reason in _CERTAIN:
            return 0, failure.rank
        if is_secondary(failure):
            return 3, failure.rank
        return (1 if failure.reason == names.REASON_KILLED else 2), failure.rank

    return min(failures, key=weight, default=None)


def judge(failure: Failure, history: History, max_restarts: int, *, knows_steps: bool) -> Verdict:
    """What to do after `failure`.

    `knows_steps`: the worker reports its step, so that the same error at the same step twice proves that a restart
    does not help. Without it only the budget ends a crash loop. Whether bad numbers are rolled back says `numerics`.
    """
    streak = history.streak + 1 if _same(failure, history) else 1
    pause = 0.0 if streak == 1 else min(BACKOFF_LIMIT, BACKOFF_FIRST * 2.0 ** (streak - 2))
    if failure.reason in _CERTAIN:
        return Verdict(True, failure.reason, failure.message, 0.0, True, streak)
    if failure.reason in _INFRASTRUCTURE:
        return Verdict(False, failure.reason, failure.message, pause, False, streak)
    if failure.reason == names.REASON_USER_ERROR and streak > 1 and knows_steps and not is_secondary(failure):
        text = f"the same error twice at step {failure.step}, a restart does not cure it: {failure.message}"
        return Verdict(True, failure.reason, text, 0.0, True, streak)
    if history.restarts >= max_restarts:
        text = f"spec.recovery.maxRestarts ({max_restarts}) is used up; last: {failure.message}"
        return Verdict(True, "RestartsExhausted", text, 0.0, True, streak)
    # A lost peer is the infrastructure's doing, as far as is known, and so is what made a worker hang; again and again
    # it is a crash loop like any other.
    counts = streak > 1 or not (is_secondary(failure) or failure.reason == names.REASON_HANG)
    return Verdict(False, failure.reason, failure.message, pause, counts, streak)


def pause(count: int) -> float:
    """Seconds until another pod takes the place of one that came to nothing, the `count`th in a row."""
    return 0.0 if count == 1 else min(BACKOFF_LIMIT, BACKOFF_FIRST * 2.0 ** (count - 1))


def _same(failure: Failure, history: History) -> bool:
    last = history.last
    if last is None:
        return False
    if is_secondary(failure):
        # Their messages name addresses and ports that change; what tells is that nothing was trained in between.
        return is_secondary(last) and failure.step <= last.step and history.calm_for < CALM
    if failure.reason in _INFRASTRUCTURE:
        # Theirs name pods; what tells is that nothing was trained in between, and not long ago.
        return failure.reason == last.reason and failure.step <= last.step and history.calm_for < CALM
    return (failure.reason, failure.message, failure.step) == (last.reason, last.message, last.step)
