"""Who is stopped, and for how long: real processes."""

import os
import signal
import subprocess
import sys
import time

import pytest

from llmtrain_trainer.agent.freezing import LIMIT, Freezes, state


@pytest.fixture
def sleeper():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


def until(pid, letter):
    deadline = time.monotonic() + 20
    while (state(pid) == "T") != (letter == "T"):
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_worker_that_stays_stopped_is_found_and_one_that_goes_on_is_not(sleeper):
    """The time counts from where it was first seen, and anew after it went on."""
    freezes, workers = Freezes(), {0: os.getpid(), 3: sleeper.pid}
    assert freezes.look(workers, 0.0) is None
    sleeper.send_signal(signal.SIGSTOP)
    until(sleeper.pid, "T")
    assert freezes.look(workers, 10.0) is None
    assert freezes.look(workers, 10.0 + 0.9 * LIMIT) is None
    sleeper.send_signal(signal.SIGCONT)
    until(sleeper.pid, "S")
    assert freezes.look(workers, 10.0 + 1.1 * LIMIT) is None
    sleeper.send_signal(signal.SIGSTOP)
    until(sleeper.pid, "T")
    assert freezes.look(workers, 20.0) is None
    assert freezes.look(workers, 20.5 + LIMIT) == (3, pytest.approx(0.5 + LIMIT))


def test_a_process_that_is_gone_is_not_stopped(sleeper):
    """Nor one whose name looks like a state."""
    sleeper.kill()
    sleeper.wait()
    assert state(sleeper.pid) == ""
    assert Freezes().look({0: sleeper.pid}, 0.0) is None
