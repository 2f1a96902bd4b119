"""What workers say about training."""

from __future__ import annotations

import dataclasses
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from llmtrain_operator.contract import codec, names, wire
from llmtrain_trainer import progress


def test_every_change_is_sent_whole(tmp_path, monkeypatch):
    """A datagram carries the whole progress, so a lost one does no harm."""
    path = str(tmp_path / "progress.sock")
    monkeypatch.setenv(names.ENV_PROGRESS_SOCKET, path)
    monkeypatch.setenv(names.ENV_ROUND, "3")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as agent:
        agent.bind(path)
        agent.settimeout(5)
        reporter = progress.Reporter(rank=1, max_steps=20)
        reporter.update(phase="training", step=4, loss=2.5)
        first, second = (codec.decode(wire.Progress, agent.recv(65536)) for _ in range(2))
    assert first == wire.Progress(rank=1, round=3, phase="loading", max_steps=20)
    assert second.spent is not None, "with the phase it says where its time went"
    second = dataclasses.replace(second, spent=None)
    assert second == wire.Progress(rank=1, round=3, phase="training", max_steps=20, step=4, loss=2.5)


@pytest.mark.parametrize("listening", [False, True], ids=["no-agent", "an-agent-that-does-not-read"])
def test_reporting_never_blocks_or_fails(tmp_path, monkeypatch, listening):
    """Training does not depend on its agent."""
    path = str(tmp_path / "progress.sock")
    monkeypatch.setenv(names.ENV_PROGRESS_SOCKET, path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as agent:
        if listening:
            agent.bind(path)
        reporter = progress.Reporter(rank=0, max_steps=20)
        for step in range(2000):
            reporter.update(step=step)
    assert reporter.progress.step == 1999


def test_the_last_word_waits_for_an_agent_that_is_slow(tmp_path, monkeypatch):
    """The queue is full, and nothing would replace what is lost now."""
    path = str(tmp_path / "progress.sock")
    monkeypatch.setenv(names.ENV_PROGRESS_SOCKET, path)
    monkeypatch.setattr(progress, "LAST_WORD", 30.0)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as agent, ThreadPoolExecutor() as pool:
        agent.bind(path)
        agent.settimeout(5)
        reporter = progress.Reporter(rank=0, max_steps=2000)
        for step in range(2001):
            reporter.update(step=step)
        ended = pool.submit(reporter.close)
        assert not ended.done()
        heard = 0
        while heard < 2000:
            heard = codec.decode(wire.Progress, agent.recv(65536)).step
        ended.result(5)


def test_an_agent_that_does_not_read_delays_the_end_by_a_moment(tmp_path, monkeypatch):
    """And no more."""
    path = str(tmp_path / "progress.sock")
    monkeypatch.setenv(names.ENV_PROGRESS_SOCKET, path)
    monkeypatch.setattr(progress, "LAST_WORD", 0.05)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as agent:
        agent.bind(path)
        reporter = progress.Reporter(rank=0, max_steps=20)
        for step in range(2000):
            reporter.update(step=step)
        reporter.close()


def test_a_step_is_a_plain_line():
    """It reads well in `kubectl logs`."""
    done = wire.Progress(0, 1, step=20, max_steps=200, loss=3.21009, learning_rate=3e-4, tokens_per_second=12345.4)
    assert progress.step_line(done) == "step 20/200 loss 3.2101 lr 3.0e-04 12,345 tok/s"


def test_the_log_has_the_first_and_last_step_and_stays_short():
    """About twenty lines for a short run, one in a hundred steps for a long one."""
    lines = [step for step in range(1, 201) if progress.is_worth_a_line(step, 200)]
    assert (lines[0], lines[-1], len(lines)) == (1, 200, 21)
    assert sum(progress.is_worth_a_line(step, 100_000) for step in range(1, 100_001)) == 1001
    assert all(progress.is_worth_a_line(step, 5) for step in range(1, 6))
