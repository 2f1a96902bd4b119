"""How a worker tells its own time in a step from its waiting."""

from __future__ import annotations

import inspect
import re
import threading
import time

import pytest
import torch
from torch.distributed import ProcessGroup, Work, distributed_c10d

from llmtrain_trainer.pace import COLLECTIVES, WINDOW, Pace, Waits

OTHER = {"_get_backend", "rank", "set_timeout", "size", "_start_coalescing", "_end_coalescing"}
"""What torch asks of a group that is no collective."""


@pytest.fixture
def restored(monkeypatch):
    """Torch's methods are as before when the test is over."""
    for kind, name in ((Work, "wait"), *((ProcessGroup, name) for name in COLLECTIVES)):
        monkeypatch.setattr(kind, name, getattr(kind, name))


class Answer(Work):
    """Something to wait for that comes after so many seconds."""

    def __init__(self, after):
        super().__init__()
        self.come = threading.Event()
        threading.Timer(after, self.come.set).start()


def test_every_collective_of_torch_is_known():
    """A new version of torch that begins one in another way would have its waiting count as computing."""
    called = set(re.findall(r"\bgroup\.(\w+)\(", inspect.getsource(distributed_c10d)))
    assert called - OTHER == set(COLLECTIVES)


def test_an_older_torch_lacks_some_of_them(restored, monkeypatch):
    """What cannot be begun cannot be waited in."""
    monkeypatch.delattr(ProcessGroup, "gather_single")
    assert Waits().seconds == 0.0


def test_waiting_for_others_is_not_a_workers_own_time(restored, monkeypatch):
    """Of a step of 30 ms that waits for 20 ms, 10 ms are its own."""
    monkeypatch.setattr(Work, "wait", lambda answer: answer.come.wait())
    pace = Pace(2, torch.device("cpu"), gathers=True)
    told = []
    for _ in range(WINDOW):
        began = time.perf_counter()
        with pace.step(), pace.forward():
            time.sleep(0.01)
            Answer(0.02).wait()
        told.append(pace.told(time.perf_counter() - began))
    assert told[:-1] == [None] * (WINDOW - 1), "a few steps say nothing"
    last = told[-1]
    assert last.rank == 2
    assert last.own >= 0.01
    assert last.step - last.own >= 0.02


def test_a_few_outliers_do_not_move_a_pace(restored):
    """Medians: first steps, and steps that take many times as long, count for nothing."""
    pace = Pace(0, torch.device("cpu"), gathers=False)
    for step in range(WINDOW):
        with pace.step():
            time.sleep(0.05 if step < WINDOW // 2 else 0.001)
        told = pace.told(5.0 if step < WINDOW // 2 else 1.0)
    assert told.own < 0.05
    assert told.step == 1.0


def test_nothing_is_told_of_an_accelerator_that_gathers_weights_in_each_forward_pass():
    """They would be waiting for others, unseen."""
    pace = Pace(0, torch.device("meta"), gathers=True)
    for _ in range(WINDOW):
        with pace.step(), pace.forward():
            pass
        assert pace.told(1.0) is None
