"""The recovery ladder: root cause and verdict."""

from __future__ import annotations

import pytest

from llmtrain_operator import failure
from llmtrain_operator.contract import names
from llmtrain_operator.contract.wire import Failure

KILLED = Failure(names.REASON_KILLED, "SIGKILL", 1, rank=2, step=7, signal=9)
ERROR = Failure(names.REASON_USER_ERROR, "ValueError: x", 1, rank=1, step=7)
PEER = Failure(names.REASON_USER_ERROR, "RuntimeError: [gloo] Connection closed by peer", 1, rank=0, step=7)
NAN = Failure(names.REASON_NON_FINITE_LOSS, "loss is nan", 1, rank=3, step=7)
TEXT = Failure(names.REASON_DATA_MISSING, "no text", 1, rank=3, step=0)
LOST = Failure(names.REASON_POD_LOST, "pod is gone", 1, step=7)
EARLIER = Failure(names.REASON_POD_LOST, "another pod is gone", 1, step=6)
FENCED = Failure(names.REASON_FENCED, "round 9 owns the storage", 1, step=7)
FULL = Failure(names.REASON_STORAGE_FULL, "no space left", 1, step=0)


@pytest.mark.parametrize(
    ("failures", "expected"),
    [
        pytest.param([PEER, KILLED], KILLED, id="a-kill-explains-its-neighbours-errors"),
        pytest.param([PEER, ERROR], ERROR, id="an-exception-explains-its-neighbours-errors"),
        pytest.param([KILLED, NAN], NAN, id="a-permanent-error-first"),
        pytest.param([PEER], PEER, id="a-lost-peer-if-nothing-else-is-known"),
        pytest.param([], None, id="nothing"),
    ],
)
def test_root_cause(failures, expected) -> None:
    """One death makes its neighbours fail too; the one that started it is blamed."""
    assert failure.root_cause(failures) == expected


@pytest.mark.parametrize(
    ("what", "history", "knows_steps", "fatal", "counts", "pause"),
    [
        pytest.param(TEXT, (0, 0, None), True, True, True, 0, id="permanent-fails-at-once"),
        pytest.param(NAN, (0, 0, None), True, True, True, 0, id="bad-numbers-too-unless-they-are-rolled-back"),
        pytest.param(ERROR, (0, 0, None), True, False, True, 0, id="first-error-restarts-at-once"),
        pytest.param(ERROR, (1, 1, ERROR), True, True, True, 0, id="same-error-same-step-fails"),
        pytest.param(ERROR, (1, 1, ERROR), False, False, True, 1, id="steps-unknown-pauses-instead"),
        pytest.param(ERROR, (3, 3, ERROR), False, False, True, 4, id="the-pause-doubles"),
        pytest.param(KILLED, (10, 1, ERROR), True, True, True, 0, id="budget-used-up"),
        pytest.param(LOST, (10, 9, ERROR), True, False, False, 0, id="infrastructure-never-uses-the-budget"),
        pytest.param(LOST, (10, 3, LOST), True, False, False, 4, id="pods-lost-again-and-again-pause"),
        pytest.param(LOST, (10, 3, EARLIER), True, False, False, 0, id="not-when-steps-were-done-in-between"),
        pytest.param(LOST, (10, 3, LOST, 900.0), True, False, False, 0, id="nor-after-a-calm-time"),
        pytest.param(FENCED, (10, 1, None), True, False, False, 0, id="a-leftover-of-an-older-round"),
        pytest.param(FULL, (10, 9, FULL), True, False, False, 60, id="storage-is-tried-again-for-ever"),
        pytest.param(PEER, (0, 0, None), True, False, False, 0, id="a-lost-peer-is-not-the-users-doing"),
        pytest.param(PEER, (1, 1, PEER), True, False, True, 1, id="a-lost-peer-twice-is-not-the-users-error"),
    ],
)
def test_verdict(what, history, knows_steps, fatal, counts, pause) -> None:
    """Each class of failure has its own response."""
    verdict = failure.judge(what, failure.History(*history), 10, knows_steps=knows_steps)
    assert (verdict.fatal, verdict.counts, verdict.pause) == (fatal, counts, pause)
    assert what.message in verdict.message
