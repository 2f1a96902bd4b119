"""Looks at real processes: one that shows its stack, and ones that would die of being asked."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llmtrain_operator.contract.wire import Progress
from llmtrain_trainer.agent import sampling
from llmtrain_trainer.agent.sampling import Watches, answers, main_stack

ROOT = Path(__file__).parents[2]
PATIENCE = 20.0


@pytest.fixture
def start(tmp_path):
    """Processes that run a line of Python after another that makes them ready."""
    running = []

    def begin(*lines):
        program = "\n".join((*lines, "print('ready', flush=True)", "import threading; threading.Event().wait()"))
        paths = f"{ROOT / 'operator'}:{ROOT / 'trainer_image'}"
        environment = {**os.environ, "PYTHONPATH": paths, "LLMTRAIN_STACK_FILE": str(tmp_path / "0.stack")}
        process = subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE)
        running.append(process)
        assert process.stdout
        process.stdout.readline()
        return process

    yield begin
    for process in running:
        process.kill()
        process.wait()


OFFER = "from llmtrain_trainer import stacks; stacks.offer()"


def watched(tmp_path):
    """Of a worker whose steps took 10 ms, the last of them a while ago."""
    watches = Watches()
    watches.begin({0: 7}, {0: tmp_path / "0.stack"})
    for step in range(10):
        watches.hear(Progress(7, 1, "training", step, step_seconds=0.01))
    return watches


def looked(watches, workers, monkeypatch, ahead):
    """What is found within some seconds, on a clock that is ahead of the real one."""
    real = time.monotonic
    monkeypatch.setattr(sampling.time, "monotonic", lambda: real() + ahead)
    end = real() + 3.0
    while real() < end:
        if found := watches.look(workers):
            return found
        time.sleep(0.02)
    return None


def test_a_process_that_hangs_is_found_with_its_stack(start, tmp_path, monkeypatch):
    """Twice the same, from the process itself."""
    process, watches = start(OFFER), watched(tmp_path)
    local_rank, hang = looked(watches, {0: process.pid}, monkeypatch, 10.0)
    assert (local_rank, hang.waits) == (0, False)
    assert "in wait" in hang.where
    assert "<module>" in main_stack(watches.stacks[0])
    assert process.poll() is None


@pytest.mark.parametrize("line", ["pass", f"{OFFER}; import faulthandler, signal; faulthandler.unregister(12)"])
def test_one_that_would_die_of_it_is_not_asked(start, tmp_path, monkeypatch, line):
    """It never offered, or no longer does: whatever stack file another process has left there."""
    process, watches = start(line), watched(tmp_path)
    (tmp_path / "0.stack").touch()
    assert not answers(process.pid)
    assert looked(watches, {0: process.pid}, monkeypatch, 10.0) is None
    assert process.poll() is None


def test_one_that_is_gone_is_not_asked_either(start, tmp_path, monkeypatch):
    """It may have ended since it was listed."""
    process, watches = start(OFFER), watched(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.wait(PATIENCE)
    assert looked(watches, {0: process.pid}, monkeypatch, 10.0) is None


def test_waiting_for_a_processor_is_told_from_having_nothing_to_do(start):
    """Two that compute share one processor: each waits for the other; one that sleeps waits for nobody."""
    pin = f"import os; os.sched_setaffinity(0, {{{min(os.sched_getaffinity(0))}}})"
    busy = "import signal; signal.alarm(20); print('ready', flush=True)\nwhile True: pass"
    first, _, idle = start(pin, busy), start(pin, busy), start("pass")
    end = time.monotonic() + PATIENCE
    while sampling.starved(first.pid) < 0.3:
        assert time.monotonic() < end
    assert sampling.starved(idle.pid) < 0.3 * sampling.starved(first.pid)
    assert sampling.starved(2**22 + 1) == 0.0
