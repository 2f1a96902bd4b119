"""How often a snapshot is taken."""

import pytest

from llmtrain_operator.contract.cadence import Measured, pace, persist_interval


@pytest.mark.parametrize(
    ("every", "copy_every", "measured", "expected"),
    [
        (1, None, Measured(1.0, 0.5), (1, 1)),
        (5, None, Measured(), (5, 5)),
        (5, 7, Measured(), (5, 10)),
        ("auto", None, Measured(), (1, 1)),
        ("auto", None, Measured(step=1.0, stall=0.01), (1, 1)),
        ("auto", None, Measured(step=1.0, stall=0.03), (1, 1)),
        ("auto", None, Measured(step=0.1, stall=0.03), (10, 10)),
        ("auto", None, Measured(step=0.1, stall=0.03, copy=1.5), (10, 20)),
        ("auto", 25, Measured(step=0.1, stall=0.03, copy=9.0), (10, 30)),
    ],
    ids=[
        "obeyed",
        "every-5",
        "copies-are-multiples",
        "unmeasured",
        "cheap",
        "just-cheap",
        "dear",
        "slow-copies",
        "both",
    ],
)
def test_the_pace(every, copy_every, measured, expected):
    """A number is obeyed; auto keeps to its share of the time, and copies to what the network can do."""
    found = pace(every, copy_every, 0.03, measured)
    assert (found.snapshot, found.copy) == expected
    assert found.reason


def test_the_reason_tells_cost_and_step():
    """A user who sees fewer snapshots than steps has to see why."""
    reason = pace("auto", None, 0.03, Measured(step=0.1, stall=0.03)).reason
    assert "30.0 ms" in reason
    assert "100 ms" in reason
    assert "every 10 steps" in reason


def test_more_failures_or_cheaper_saves_mean_more_checkpoints():
    """As Young and Daly have it; but one save does not follow the other without a pause."""
    rare, _ = persist_interval(0.1, 20.0, 0.03, 86400.0)
    often, _ = persist_interval(0.1, 20.0, 0.03, 3600.0)
    dear, _ = persist_interval(5.0, 20.0, 0.03, 3600.0)
    assert often < rare
    assert often < dear
    assert persist_interval(0.001, 600.0, 0.0, 60.0)[0] == 1200.0
