"""Every panel of every board, asked of a real Prometheus that scrapes the real exporters of operator and members.

What they tell of is made up: a job that has everything a job can have. The same is done with a real job on nodes in
tests/e2e/test_monitoring.py.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import get_args

import pytest

from dashboards.boards import BOARDS
from dashboards.panel import Panel
from dashboards.prometheus import Prometheus, running
from llmtrain_operator.api import (
    CheckpointStatus,
    FlashStatus,
    IncidentStatus,
    JobStatus,
    MemberStatus,
    ProgressStatus,
    RoundStatus,
    StragglerStatus,
)
from llmtrain_operator.conditions import ConditionType, put, timestamp
from llmtrain_operator.contract import wire
from llmtrain_operator.metrics import Metrics
from llmtrain_trainer.agent.metrics import Book
from tests.support.exported import member_text
from tests.support.panels import complaints

PANELS = [pytest.param(panel, id=f"{board.name}: {panel.title}") for board in BOARDS for panel in board.panels]
VALUES = {"namespace": ".+", "job": "j", "__rate_interval": "40s"}
SCRAPES = 3


class World:
    """A job whose clock runs: at every look it has done more steps, and more time has gone to each cause."""

    def __init__(self) -> None:
        self.began = time.time()
        self.metrics = Metrics()
        self.metrics.begin_term(lambda: 1.0)
        self.books = [Book(), Book()]

    def operator(self) -> bytes:
        """The operator's page. Every look is a pass and a call, too."""
        self.metrics.job("ns", "j", status(time.time() - self.began))
        self.metrics.observe_pass("ns/j", 0.001, 0.004, succeeded=True)
        self.metrics.observe_call("patch", "llmtrainjobs", "200")
        return self.metrics.text()

    def member(self, index: int) -> bytes:
        """A member's page."""
        age = time.time() - self.began
        self.books[index].hear(progress(index, age))
        return member_text(self.books[index], "ns/j", index)


def status(age: float) -> JobStatus:
    """Of the job, `age` seconds after the beginning."""
    now, step = timestamp(time.time()), 100 + int(10 * age)
    members = tuple(
        MemberStatus(index=index, incarnation=1, pod=f"j-{index}-1", uid=f"u{index}", host="h", store_port=1)
        for index in range(2)
    )
    spent = {"productive": 60 + 0.9 * age, "recompute": 2 + 0.05 * age, "restart": 3 + 0.05 * age, "suspended": 100.0}
    fault = IncidentStatus(
        number=1,
        time=now,
        kind="process",
        reason="Killed",
        round=1,
        detect_seconds=0.2,
        round_seconds=0.5,
        train_seconds=1.5,
        lost_steps=0,
        outcome="Recovered",
    )
    conditions = ()
    for kind in get_args(ConditionType):
        conditions = put(conditions, kind, kind not in ("Failed", "Suspended"), "R", "", generation=1, now=age)
    return JobStatus(
        state="Running",
        conditions=conditions,
        round=RoundStatus(number=2, procs_per_member=1, members=members, started_at=now),
        replicas=2,
        target_nodes=2,
        spares=1,
        progress=ProgressStatus(
            step=step,
            max_steps=100_000,
            loss=3.1,
            validation_loss=3.3,
            tokens_per_second=9e4,
            mfu=0.41,
            learning_rate=3e-4,
            gradient_norm=1.2,
            step_seconds=0.1,
            phase="training",
        ),
        flash=FlashStatus(step=step, committed_step=step - 1, copies=1, stall_seconds=0.003, size=10**9, every=1),
        checkpoint=CheckpointStatus(
            step=step - 50,
            saved_at=now,
            stall_seconds=0.1,
            save_seconds=2.5,
            size=10**9,
            restored_step=90,
            restore_seconds=0.4,
            restored_tier="memory",
            restored_round=2,
        ),
        restarts=1,
        incidents=(fault,),
        incident_counts={"Killed": 1},
        stragglers=(StragglerStatus(member=1, rank=1, node="n1", factor=1.7, since=now, step=7, found=True),),
        ledger=spent,
        accelerator_ledger={cause: 2 * seconds for cause, seconds in spent.items()},
    )


def progress(rank: int, age: float) -> wire.Progress:
    """What a worker says then."""
    steps = 100 + int(10 * age)
    counts = (0, 0, 0, steps, *(0,) * (len(wire.STEP_BOUNDS) - 3))
    return wire.Progress(
        rank,
        2,
        step=steps,
        max_steps=100_000,
        loss=3.1,
        phase="training",
        tokens_per_second=9e4,
        flash=wire.Flash(step=steps, committed=steps - 1, stall_seconds=0.003),
        checkpoints=wire.Checkpoints(step=steps - 50, restore_seconds=0.4, restored_tier="memory"),
        spent=wire.Spent(data=0.01 * age),
        durations=wire.Durations(counts, seconds=0.1 * steps),
    )


def serve(page: Callable[[], bytes]) -> ThreadingHTTPServer:
    """An HTTP server on loopback, in a thread."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = page()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            with suppress(BrokenPipeError):  # on a busy machine Prometheus may have given up
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
            del format, args

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """One that has scraped all exporters a few times."""
    world = World()
    servers = [serve(world.operator), serve(lambda: world.member(0)), serve(lambda: world.member(1))]
    names = ("operator", "member0", "member1")
    scrapes = [
        {"job_name": name, "static_configs": [{"targets": [f"127.0.0.1:{server.server_port}"]}]}
        for name, server in zip(names, servers, strict=True)
    ]
    directory: Path = tmp_path_factory.mktemp("prometheus")
    with running(directory, scrapes) as server:
        for metric in ("llmtrain_leader", "llmtrain_member_step"):
            server.until(f"min(count_over_time({metric}[5m])) >= {SCRAPES}", 120)
        yield server
    for each in servers:
        each.shutdown()
        each.server_close()


@pytest.mark.parametrize("panel", PANELS)
def test_every_panel_shows_something_that_can_be_true(prometheus: Prometheus, panel: Panel) -> None:
    """At least one series for each query, and values within what the panel says to be plausible."""
    assert complaints(prometheus, panel, VALUES) == []


def test_a_panel_whose_query_is_wrong_is_found_out(prometheus: Prometheus) -> None:
    """By a name that nobody exports, by what is no PromQL, and by a value that cannot be."""
    panel = BOARDS[0].panels[0]
    spoilt = [
        ("no series", "llmtrain_job_stepp"),
        ("parse error", "sum(llmtrain_jobs"),
        ("is not between", "sum(llmtrain_jobs) - 1000"),
        ("no number", "sum(llmtrain_jobs) * NaN"),
    ]
    for words, expr in spoilt:
        changed = type(panel)(panel.title, panel.description, (type(panel.queries[0])(expr, "x"),))
        [complaint] = complaints(prometheus, changed, VALUES)
        assert words in complaint


def test_namespace_and_job_are_the_training_jobs(prometheus: Prometheus) -> None:
    """Prometheus has labels of these names too; what the variables of the boards offer are the exporters' values."""
    [series] = prometheus.query("llmtrain_job_step")
    assert (series.labels["namespace"], series.labels["job"]) == ("ns", "j")


def test_a_range_is_answered_point_by_point(prometheus: Prometheus) -> None:
    """What the renderer of the pictures draws."""
    now = time.time()
    [series] = prometheus.query_range("llmtrain_job_step", now - 6, now, 1)
    values = [value for _, value in series.points]
    assert len(values) >= 2
    assert values == sorted(values)
