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
_COLLECTIVE = re.compile(
    r"connection (closed|reset|refused)|broken pipe|gloo|nccl|process ?group|socket timeout|tcpstore", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class History:
    """What the job went through before: `restarts` spent of the budget, and the streak of identical failures."""

    restarts: int
    streak: int
    last: Failure | None


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
        if failure.reason in names.PERMANENT_REASONS:
            return 0, failure.rank
        if is_secondary(failure):
            return 3, failure.rank
        return (1 if failure.reason == names.REASON_KILLED else 2), failure.rank

    return min(failures, key=weight, default=None)


def judge(failure: Failure, history: History, max_restarts: int, *, knows_steps: bool) -> Verdict:
    """What to do after `failure`.

    `knows_steps`: the worker reports its step, so that the same error at the same step twice proves that a restart
    does not help. Without it only the budget ends a crash loop.
    """
    streak = history.streak + 1 if _same(failure, history.last) else 1
    if failure.reason in names.PERMANENT_REASONS:
        return Verdict(True, failure.reason, failure.message, 0.0, True, streak)
    if failure.reason == names.REASON_POD_LOST:
        return Verdict(False, failure.reason, failure.message, 0.0, False, streak)
    if failure.reason == names.REASON_USER_ERROR and streak > 1 and knows_steps and not is_secondary(failure):
        text = f"the same error twice at step {failure.step}, a restart does not cure it: {failure.message}"
        return Verdict(True, failure.reason, text, 0.0, True, streak)
    if history.restarts >= max_restarts:
        text = f"spec.recovery.maxRestarts ({max_restarts}) is used up; last: {failure.message}"
        return Verdict(True, "RestartsExhausted", text, 0.0, True, streak)
    pause = 0.0 if streak == 1 else min(BACKOFF_LIMIT, BACKOFF_FIRST * 2.0 ** (streak - 2))
    # A lost peer is the infrastructure's doing, as far as is known; again and again it is a crash loop like any other.
    counts = streak > 1 or not is_secondary(failure)
    return Verdict(False, failure.reason, failure.message, pause, counts, streak)


def _same(failure: Failure, last: Failure | None) -> bool:
    if last is not None and is_secondary(failure):
        return is_secondary(last)  # their messages name addresses and ports that change
    return last is not None and (failure.reason, failure.message, failure.step) == (
        last.reason,
        last.message,
        last.step,
    )
