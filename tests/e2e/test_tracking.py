"""Experiment trackers of jobs whose workers are killed, that shrink and grow: what their records hold at the end.

The real libraries, offline; services on the internet cannot be reached here. `llmtrain local` runs the jobs.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmtrain_trainer.trackers.outbox import Outbox, close_all
from llmtrain_trainer.trackers.points import Point
from tests.support import tracked
from tests.support.local import ROOT, Local, spec

SEED = 20261207
PATIENCE = 200.0
"""Seconds for a library's imports: the machine may be busy."""
OFFLINE = {
    "tensorboard": {"dir": "pvc://records/tensorboard"},
    "wandb": {"project": "p", "mode": "offline", "dir": "pvc://records/wandb"},
    "swanlab": {"project": "p", "mode": "offline", "dir": "pvc://records/swanlab"},
    "mlflow": {"trackingUri": "pvc://records/mlflow"},
}


def _repeated(record: tracked.Record) -> list[tuple[int, str]]:
    return [point for point, count in Counter((step, name) for step, name, _ in record).items() if count > 1]


def _missing(record: tracked.Record, steps: int) -> set[int]:
    return set(range(1, steps + 1)) - {step for step, name, _ in record if name == "train/loss"}


def _workers(run: Local) -> list[int]:
    return run.processes("-m\0llmtrain_trainer.train")


def _tracked(run: Local) -> dict[str, Any]:
    found = [each for each in run.status.get("conditions") or () if each["type"] == "Tracked"]
    return found[0] if found else {}


@contextlib.contextmanager
def _running(folder: Path, steps: int, **more: Any) -> Iterator[Local]:
    run = Local(folder, spec(steps, **more), 2)
    try:
        yield run
    finally:
        run.kill()


STEPS = 1000


def test_every_step_is_recorded_once_though_workers_are_killed_and_the_job_is_resized(tmp_path: Path) -> None:
    """Rank 0 among them, at random steps, with its tracker; every value of every step is there, and none twice."""
    rng = random.Random(SEED)
    training = {"maxSteps": STEPS, "globalBatchSize": 48, "precision": "fp32", "evaluation": {"everySteps": 100}}
    tracking = {name: OFFLINE[name] for name in ("tensorboard", "mlflow")}  # the others take longer to start: below
    job = {
        "nodes": {"min": 1, "max": 2},
        "training": training,
        "tracking": tracking,
        "checkpoint": {"durable": {"storage": "pvc://checkpoints/j"}},  # else it would not be made smaller
    }
    with _running(tmp_path, STEPS, **job) as run:
        run.until_training()
        for number in range(2):
            rounds, step = run.status["rounds"], run.status["progress"]["step"]
            target = step + rng.randint(20, 60)
            run.until(lambda: (run.status.get("progress") or {}).get("step", 0) >= target, f"step {target}")  # noqa: B023
            victims = _workers(run)
            os.kill(victims[0] if number % 2 == 0 else rng.choice(victims), signal.SIGKILL)
            run.until(lambda: run.status["rounds"] > rounds and run.members, "the next round")  # noqa: B023
        for size in (1, 2):
            run.llmtrain("scale", "j", str(size))
            run.until(lambda: len(run.members) == size, f"{size} members")  # noqa: B023
        run.ends_with(0)
    assert _tracked(run)["status"] == "True"
    records = tmp_path / "local/volumes/records"
    for name in tracking:
        record = tracked.READERS[name](records / name)
        assert (_missing(record, STEPS), _repeated(record)) == (set(), []), name
        counted = Counter(key for _, key, _ in record)
        assert counted["train/learning_rate"] == counted["speed/step_seconds"] == STEPS, name
        assert sorted(s for s, key, _ in record if key == "validation/loss") == list(range(100, STEPS + 1, 100)), name
        assert {value for _, key, value in record if key == "job/workers"} == {1.0, 2.0}, name


LAST = 600
KILLS = 3
UID = "0b0b7e90-6c58-4bb9-8b2e-0c8bb0c3a1f4"


@pytest.mark.parametrize("name", OFFLINE)
def test_a_tracker_that_is_killed_at_any_instant_leaves_no_gap(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Round after round, each going on from what the last one is known to have kept, as snapshots have it."""
    rng = random.Random(SEED)
    monkeypatch.setenv("LLMTRAIN_SPEC", json.dumps(spec(LAST, tracking={name: OFFLINE[name]})))
    monkeypatch.setenv("LLMTRAIN_JOB_UID", UID)
    monkeypatch.setenv("LLMTRAIN_VOLUMES", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "operator"), str(ROOT / "trainer_image")]))
    known = 0
    for number in range(1, KILLS + 1):
        monkeypatch.setenv("LLMTRAIN_ROUND", str(number))
        known = max(known, _killed_round(Outbox(name), known + 1, rng.randint(1, 150)))
    monkeypatch.setenv("LLMTRAIN_ROUND", str(KILLS + 1))
    outbox = Outbox(name)
    for step in range(known + 1, LAST + 1):
        outbox.add(step, _point(step))
    close_all([outbox], PATIENCE)
    assert not outbox.trouble
    record = tracked.READERS[name](tmp_path / "records" / name)
    assert (_missing(record, LAST), _repeated(record)) == (set(), [])
    assert len(record) == 3 * LAST
    assert all(value == step for step, key, value in record if key == "train/loss")


def _point(step: int) -> str:
    return Point(step, 1.8e9 + step, {"train/loss": float(step), "job/round": 1.0, "train/epoch": 0.5}).encode()


def _killed_round(outbox: Outbox, first: int, more: int) -> int:
    """A point every few milliseconds; the process is killed so many points after it has begun. What is known of it."""
    begun, end = None, time.monotonic() + PATIENCE
    for step in range(first, LAST):
        outbox.add(step, _point(step))
        while begun is None and step >= first + 20:  # it starts; more would overflow what a snapshot carries
            outbox.pump(time.monotonic())
            begun = step if outbox.heard else None
            assert not outbox.trouble
            assert time.monotonic() < end
            time.sleep(0.01)
        outbox.pump(time.monotonic())
        if begun is not None and step >= begun + more:
            break
        time.sleep(0.004)
    outbox.end()
    outbox._process.wait()
    return outbox.kept


@pytest.fixture
def silent_server() -> Iterator[str]:
    """The URL of a server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_tracker_that_hangs_costs_training_nothing(tmp_path: Path, silent_server: str) -> None:
    """MLflow's server answers nobody: the job is complete all the same, the condition says so, and TensorBoard, which
    is asked for too, has everything."""
    tracking = {"tensorboard": OFFLINE["tensorboard"], "mlflow": {"trackingUri": silent_server}}
    with _running(tmp_path, 300, tracking=tracking) as run:
        run.ends_with(0)
    assert run.status["state"] == "Complete"
    told = _tracked(run)
    assert (told["status"], told["reason"]) == ("False", "TrackerSlow")
    assert "MLflow: the last 300 points were not kept within" in told["message"]
    record = tracked.tensorboard(tmp_path / "local/volumes/records/tensorboard")
    assert (_missing(record, 300), _repeated(record)) == (set(), [])
