"""The independent account that the ledger is held against."""

from __future__ import annotations

import pytest

from tests.support.steplog import Logged, Sums, read, summed


def test_steps_done_again_are_told_from_new_ones(tmp_path) -> None:
    """Between rounds there is nothing; a line that was cut off is no step."""
    path = tmp_path / "steps.jsonl"
    rows = [(1, 1, 10.0, 11.0), (1, 2, 11.5, 12.5), (2, 2, 20.0, 21.0), (2, 3, 21.0, 22.0)]
    text = "".join(
        f'{{"round": {number}, "step": {step}, "started": {start}, "ended": {end}, "data": 0.25, "stalled": 0.125}}\n'
        for number, step, start, end in rows
    )
    path.write_text(text + '{"round": 2, "st')
    steps = read(path)
    assert steps[0] == Logged(1, 1, 10.0, 11.0, 0.25, 0.125)
    assert summed(steps) == Sums(productive=3.5 - 3 * 0.375, recompute=0.625, data=1.0, stalled=0.5)
    assert summed(steps).all == pytest.approx(4.5)
