"""A member's metrics through the real socket, the real endpoint and the real parser."""

from __future__ import annotations

import dataclasses
import logging
import socket
import sys
import threading
import urllib.request

import pytest

from llmtrain_operator.contract import names, wire
from llmtrain_trainer.agent import metrics
from llmtrain_trainer.agent.environment import Environment
from llmtrain_trainer.agent.membership import Membership
from llmtrain_trainer.agent.metrics import Book
from llmtrain_trainer.agent.progress import ProgressSocket
from llmtrain_trainer.progress import Reporter
from tests.support.metrics import families, samples

JOB = ("job", "3", "ns")
"""The labels job, member and namespace."""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture
def environment(tmp_path):
    place = Environment(
        "ns/job", "job-3-1", "u", 3, 1, "127.0.0.1", 2, ("ws://127.0.0.1:1",), "", tmp_path / "token", 5, {}
    )
    return dataclasses.replace(place, metrics_port=free_port())


def scrape(environment) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{environment.metrics_port}/metrics", timeout=10) as answer:
        return answer.read()


def open_and_wait(environment, membership) -> Book:
    """The endpoint is opened in a thread, for nobody to wait for it; but for this test."""
    book = metrics.open_metrics(environment, membership)
    for thread in [thread for thread in threading.enumerate() if thread.name == "metrics"]:
        thread.join(30)
    return book


def said(rank=0, number=1, **fields) -> wire.Progress:
    return wire.Progress(rank, number, **fields)


def durations(*counts: int, seconds: float) -> wire.Durations:
    return wire.Durations((*counts, *(0,) * (len(wire.STEP_BOUNDS) + 1 - len(counts))), seconds)


def test_what_a_worker_reports_is_scraped(environment, tmp_path, monkeypatch):
    """From the worker's reporter to the parser, with every step in the histogram although only the last was heard."""
    monkeypatch.setenv(names.ENV_ROUND, "1")
    monkeypatch.setenv(names.ENV_PROGRESS_SOCKET, str(tmp_path / "progress"))
    reporter = Reporter(0, 10)
    for took in (0.02, 0.02, 0.3):
        reporter.update(phase="training", step_seconds=took)  # nobody listens yet
    book = open_and_wait(environment, Membership(environment))
    receiver = ProgressSocket(tmp_path / "progress", book.hear)
    flash = wire.Flash(step=3, committed=2, stall_seconds=0.01)
    reporter.update(step=3, loss=2.5, gradient_norm=0.5, learning_rate=1e-3, tokens_per_second=10.0, mfu=0.4)
    reporter.update(flash=flash, checkpoints=wire.Checkpoints(step=1, restore_seconds=0.2, restored_tier="peer"))
    reporter.close()
    receiver.drain()
    shown = samples(scrape(environment))
    steps = shown["llmtrain_member_step_duration_seconds_bucket"]
    assert steps[JOB[0], "0.01", *JOB[1:]] == 0
    assert (steps[JOB[0], "0.025", *JOB[1:]], steps[JOB[0], "0.5", *JOB[1:]]) == (2, 3)
    assert shown["llmtrain_member_step_duration_seconds_count"] == {JOB: 3}
    assert shown["llmtrain_member_step_duration_seconds_sum"][JOB] == pytest.approx(0.34)
    expected = {
        "step": 3,
        "loss": 2.5,
        "gradient_norm": 0.5,
        "learning_rate": 1e-3,
        "tokens_per_second": 10,
        "mfu_ratio": 0.4,
        "snapshot_stall_seconds": 0.01,
        "snapshot_step": 3,
        "committed_step": 2,
        "checkpoint_step": 1,
    }
    assert {name: shown[f"llmtrain_member_{name}"] for name in expected} == {n: {JOB: v} for n, v in expected.items()}
    assert shown["llmtrain_member_restore_seconds"] == {(*JOB, "peer"): 0.2}
    assert shown["llmtrain_member_phase"][*JOB, "training"] == 1
    assert sum(shown["llmtrain_member_phase"].values()) == 1


def test_before_anyone_speaks_the_endpoint_answers(environment):
    """As it does for a script that reports nothing: without numbers, rather than with zeros."""
    membership = Membership(environment)
    open_and_wait(environment, membership)
    shown = samples(scrape(environment))
    assert shown["llmtrain_member_worker_restarts_total"] == {JOB: 0}
    assert "llmtrain_member_loss" not in shown
    assert "llmtrain_member_phase" not in shown


def test_rounds_and_restarts_are_the_agents_own_knowledge(environment):
    """Each round but the first has its workers started anew."""
    membership = Membership(environment)
    open_and_wait(environment, membership)
    for number in (4, 7):
        membership.enter(wire.Round(number, (), 1), 0)
    shown = samples(scrape(environment))
    assert shown["llmtrain_member_round"] == {JOB: 7}
    assert shown["llmtrain_member_worker_restarts_total"] == {JOB: 1}


def test_sums_go_on_over_rounds():
    """New workers count from nothing; what those before them have counted is not lost, and never counted twice."""
    book = Book()
    for _ in range(2):
        book.hear(said(0, 1, durations=durations(5, seconds=1.0), spent=wire.Spent(data=0.5)))
        book.hear(said(1, 1, durations=durations(5, seconds=1.0), spent=wire.Spent(data=0.7)))
    assert (book.totals().steps[:2], book.totals().data_seconds) == ((5, 0), 0.7)
    book.hear(said(0, 2, phase="loading"))
    book.hear(said(0, 1, durations=durations(50, seconds=9.0)))
    assert book.totals().steps[0] == 5, "a worker of an earlier round is too late"
    book.hear(said(0, 2, durations=durations(1, 2, seconds=3.0), spent=wire.Spent(data=0.1)))
    totals = book.totals()
    assert (totals.steps[:2], totals.step_seconds, totals.data_seconds) == ((6, 2), 4.0, pytest.approx(0.8))


def test_numbers_stay_while_the_next_round_loads():
    """A worker that loads says step 0, which is not where training is; its phase is what it is."""
    book = Book()
    book.hear(said(0, 1, step=40, loss=2.0))
    book.hear(said(1, 1, step=41, loss=3.0))
    book.hear(said(0, 2, phase="restoring"))
    assert (book.trained().step, book.trained().loss) == (40, 2.0)
    assert [each.phase for each in book.workers()] == ["restoring"]


def test_a_trainer_that_counts_otherwise_is_not_counted():
    """One of another version may have other classes; the endpoint goes on."""
    book = Book()
    book.hear(said(0, 1, durations=wire.Durations((1, 2), 0.1)))
    book.hear(said(0, 2, durations=wire.Durations((1,) * 40, 0.1)))
    assert (sum(book.totals().steps), book.totals().step_seconds) == (0, 0.0)


@pytest.mark.parametrize("trouble", ["taken", "beyond"])
def test_a_port_that_cannot_be_had_is_a_line_in_the_log(environment, caplog, trouble):
    """And no more than that."""
    with socket.create_server(("127.0.0.1", 0)) as other, caplog.at_level(logging.WARNING):
        port = other.getsockname()[1] if trouble == "taken" else 70_000
        open_and_wait(dataclasses.replace(environment, metrics_port=port), Membership(environment))
    [record] = caplog.records
    assert record.message.startswith(f"no metrics: port {port}")


def test_an_image_without_the_library_is_a_line_in_the_log(environment, caplog, monkeypatch):
    """A pod that was injected by an older operator."""
    monkeypatch.delitem(sys.modules, "llmtrain_trainer.agent.exposition", raising=False)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with caplog.at_level(logging.WARNING):
        book = open_and_wait(environment, Membership(environment))
    book.hear(said(0, 1, step=1))
    assert "no metrics" in caplog.text
    assert "prometheus_client" in caplog.text


def test_without_a_port_there_is_no_endpoint(environment):
    """Nor a thread that would open one."""
    metrics.open_metrics(dataclasses.replace(environment, metrics_port=0), Membership(environment))
    assert not [thread for thread in threading.enumerate() if thread.name == "metrics"]


def test_labels_are_closed(environment):
    """Never a pod, a UID or a step."""
    membership = Membership(environment)
    book = open_and_wait(environment, membership)
    book.hear(said(0, 1, step=1, checkpoints=wire.Checkpoints(restore_seconds=1.0, restored_tier="elsewhere")))
    for family in families(scrape(environment)):
        for sample in family.samples:
            assert set(sample.labels) <= {"namespace", "job", "member", "phase", "tier", "le"}
            assert sample.labels["namespace"] == "ns"
    assert "llmtrain_member_restore_seconds" not in samples(scrape(environment))
