"""Rank 0's end of a tracker that works, fails, hangs or is slow. Real processes; the backend in them is a few lines."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest

from llmtrain_operator.contract import wire
from llmtrain_trainer.trackers import outbox as module
from llmtrain_trainer.trackers.outbox import MOST, Outbox, close_all
from llmtrain_trainer.trackers.points import Point
from llmtrain_trainer.trackers.tracking import said

SERVES = """
import os, sys
from pathlib import Path
from llmtrain_trainer.trackers.backend import Run
from llmtrain_trainer.trackers import process
import socket

class Backend:
    def begin(self, run):
        self.file = Path(os.environ["RECORD"])
        return max(map(int, self.file.read_text().split()), default=0) if self.file.exists() else 0
    def log(self, points):
        with self.file.open("a") as file:
            for each in points:
                print(each.step, file=file, flush=True)
                if each.step == int(os.environ.get("DIES_AT", 0)) and not self.file.with_suffix(".died").exists():
                    self.file.with_suffix(".died").touch()
                    raise RuntimeError("the disk is full")
        self.newest = points[-1].step
    def kept(self):
        return getattr(self, "newest", 0)
    def finish(self):
        self.file.with_suffix(".finished").touch()

process.make = lambda name, config: Backend()
sys.exit(process.main(["x", *sys.argv[1:]]))
"""
SPEC = {"model": {"preset": "gpt-tiny"}, "data": {"source": "/d"}, "training": {"maxSteps": 9}}


@pytest.fixture
def record(tmp_path, monkeypatch) -> Path:
    """Where the processes' backend writes."""
    monkeypatch.setenv("RECORD", str(tmp_path / "record"))
    monkeypatch.setenv("LLMTRAIN_SPEC", json.dumps(SPEC))
    paths = [str(Path(__file__).parents[2] / folder) for folder in ("operator", "trainer_image")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    return tmp_path / "record"


def _outbox(code: str, **options) -> Outbox:
    return Outbox("x", (sys.executable, "-c", code), **options)


def _add(outbox: Outbox, first: int, last: int) -> None:
    for step in range(first, last + 1):
        outbox.add(step, Point(step, 0.0, {"train/loss": 1.0}).encode())


def _steps(record: Path) -> list[int]:
    return [int(line) for line in record.read_text().split()]


def _pump(outbox: Outbox, until, now=None) -> None:
    end = time.monotonic() + 60
    while not until():
        assert time.monotonic() < end, outbox.trouble
        outbox.pump(time.monotonic() if now is None else now)
        time.sleep(0.01)


def test_all_points_are_kept_and_the_run_is_closed(record):
    """Many more than the socket takes at once."""
    outbox = _outbox(SERVES)
    _add(outbox, 1, 3000)
    outbox.pump(time.monotonic())
    close_all([outbox], 60.0)
    assert (_steps(record), outbox.trouble) == (list(range(1, 3001)), "")
    assert record.with_suffix(".finished").exists()


def test_a_tracker_that_fails_is_started_again_and_told_what_it_lacks(record, monkeypatch):
    """The error is told as the library had it, until it works again; no point is missing and none there twice."""
    monkeypatch.setenv("DIES_AT", "3")
    outbox = _outbox(SERVES)
    _add(outbox, 1, 5)
    _pump(outbox, lambda: outbox.error and outbox.closed)
    assert (outbox.reason, outbox.error) == ("TrackerFailed", "RuntimeError: the disk is full")
    assert said([outbox]) == wire.Tracking(False, "TrackerFailed", "x: RuntimeError: the disk is full")
    _pump(outbox, lambda: outbox.kept == 5, time.monotonic() + 100)
    assert (_steps(record), outbox.trouble) == ([1, 2, 3, 4, 5], "")
    outbox.end()


def test_a_killed_tracker_is_followed_by_another(record):
    """A signal from outside is a failure like others."""
    outbox = _outbox(SERVES)
    _add(outbox, 1, 5)
    _pump(outbox, lambda: outbox.kept == 5)
    os.kill(outbox._process.pid, 9)
    _add(outbox, 6, 9)
    _pump(outbox, lambda: outbox.error and outbox.closed)
    assert outbox.error.startswith("its process has ended")
    _pump(outbox, lambda: outbox.kept == 9, time.monotonic() + 100)
    assert _steps(record) == list(range(1, 10))
    outbox.end()


def test_a_tracker_that_hangs_costs_nothing_and_is_told():
    """No call waits for it; it is killed when its time is over, and tried again after pauses that grow."""
    outbox = _outbox("import time; time.sleep(1000)", patience=10.0)
    for step in range(1, MOST + 101):
        _add(outbox, step, step)
        outbox.pump(0.0)
    assert not outbox.closed
    outbox.pump(31.0)
    assert outbox.closed
    assert outbox.reason == "TrackerHangs"
    assert outbox.trouble == "it has said nothing for 30 s; 100 points were lost"
    for failed, pause in ((31.0, 5.0), (100.0, 10.0), (200.0, 20.0)):
        outbox._process.wait(60)
        outbox.pump(failed + pause - 0.1)
        assert outbox.closed, "the pause is not over"
        outbox.pump(failed + pause + 0.1)
        assert not outbox.closed
        outbox.pump({31.0: 100.0, 100.0: 200.0, 200.0: 300.0}[failed])
        assert outbox.closed
    outbox.end()


def test_a_process_that_cannot_be_killed_is_not_waited_for():
    """Storage may hang so that nobody ends it: there is no other until it is gone."""
    outbox = _outbox("import time; time.sleep(1000)", patience=10.0)
    _add(outbox, 1, 1)
    outbox.pump(0.0)
    process = outbox._process
    process.kill = lambda: None
    outbox.pump(31.0)
    outbox.pump(1000.0)
    assert outbox.closed
    assert outbox._process is process
    del process.kill
    process.kill()
    process.wait(60)
    outbox.pump(1001.0)
    assert outbox._process is not process
    outbox.end()


def test_the_end_of_the_job_waits_for_trackers_within_bounds(record):
    """One that hangs then is killed, and its last points are said to be missing; others are closed meanwhile."""
    hanging, good = _outbox("import time; time.sleep(1000)"), _outbox(SERVES)
    for outbox in (hanging, good):
        _add(outbox, 1, 3)
        outbox.pump(time.monotonic())
    _pump(good, lambda: good.kept == 3)
    close_all([hanging, good], 5.0)
    assert hanging._process.wait(60) == -9
    assert (hanging.reason, hanging.error) == ("TrackerSlow", "the last 3 points were not kept within 5 s")
    assert good.trouble == ""
    assert record.with_suffix(".finished").exists()


def test_a_tracker_that_cannot_be_started_is_told():
    """Such as for want of memory or of an interpreter."""
    outbox = Outbox("x", ("/nonexistent/python",))
    _add(outbox, 1, 1)
    outbox.pump(0.0)
    assert outbox.reason == "TrackerFailed"
    assert "could not be started" in outbox.error


def test_an_idle_tracker_may_be_silent():
    """Where nothing is owed, nothing hangs: a job may evaluate for an hour."""
    outbox = _outbox(SERVES)
    outbox.pump(0.0)
    assert outbox._process is None
    outbox.pump(10 * module.PATIENCE)
    assert outbox.trouble == ""
