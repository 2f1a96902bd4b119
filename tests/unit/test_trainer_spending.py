"""Where a worker's time goes, and the step log."""

from __future__ import annotations

import contextlib
import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtrain_operator.contract import names, wire
from llmtrain_trainer.spending import Spending
from llmtrain_trainer.steplog import StepLog

THINGS = [field.name for field in dataclasses.fields(wire.Spent) if field.name != "steps"]


class Clock:
    """Told what time it is."""

    now = 100.0

    def __call__(self):
        return self.now


def test_each_second_goes_to_one_thing():
    """Within a context to its thing, afterwards to what it went to before."""
    clock = Clock()
    spending = Spending(clock)
    clock.now += 3
    with spending.on("stepping"):
        clock.now += 1
        with spending.on("data"):
            clock.now += 0.5
        clock.now += 2
        spending.stepped()
    clock.now += 0.25
    assert spending.read() == wire.Spent(steps=1, loading=3.25, stepping=3.0, data=0.5)


def test_what_fails_is_counted_too():
    """The context ends as usual."""
    clock = Clock()
    spending = Spending(clock)
    with contextlib.suppress(KeyError), spending.on("saving"):
        clock.now += 1
        raise KeyError
    clock.now += 2
    assert spending.read() == wire.Spent(loading=2.0, saving=1.0)


@given(st.lists(st.tuples(st.sampled_from(THINGS), st.floats(0, 100))))
def test_the_sum_is_the_time_since_the_beginning(turns):
    """Whatever happens in between."""
    clock = Clock()
    spending = Spending(clock)
    for thing, seconds in turns:
        spending.turn(thing)
        clock.now += seconds
    told = spending.read()
    assert sum(getattr(told, thing) for thing in THINGS) == pytest.approx(clock.now - 100.0, abs=1e-4)


def test_the_step_log_has_a_line_per_step(tmp_path, monkeypatch):
    """On rank 0, if there is to be one; later rounds append to it, with what was waited since the step before."""
    path = tmp_path / "steps.jsonl"
    monkeypatch.setenv(names.ENV_STEP_LOG, str(path))
    StepLog.open(is_first=False).write(1, 1, 0.5, wire.Spent())
    first = StepLog.open(is_first=True)
    first.write(1, 1, 0.5, wire.Spent(data=0.25))
    first.write(2, 1, 0.5, wire.Spent(data=0.375, snapshots=0.125))
    StepLog.open(is_first=True).write(2, 2, 0.5, wire.Spent(durable=1.0))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    told = [(line["round"], line["step"], line["data"], line["stalled"]) for line in lines]
    assert told == [(1, 1, 0.25, 0.0), (1, 2, 0.125, 0.125), (2, 2, 0.0, 1.0)]
    assert lines[0]["ended"] - lines[0]["started"] == pytest.approx(0.5)
