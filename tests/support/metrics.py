"""Everything that can be exported, at once: a job that has had it all, and the tables of docs/monitoring.md.

`python -m tests.support.metrics` writes the tables anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import get_args

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from llmtrain_operator.api import (
    CheckpointStatus,
    Condition,
    FlashStatus,
    IncidentStatus,
    JobStatus,
    LeavingNodeStatus,
    MemberStatus,
    ProgressStatus,
    RoundStatus,
    StragglerStatus,
)
from llmtrain_operator.conditions import ConditionType
from llmtrain_operator.contract import names, wire
from llmtrain_operator.coordinator.telemetry import Telemetry
from llmtrain_operator.goodput import CAUSES, IDLE
from llmtrain_operator.incidents import OTHER
from llmtrain_operator.metrics import Metrics
from llmtrain_trainer.agent.environment import Environment
from llmtrain_trainer.agent.exposition import MemberCollector
from llmtrain_trainer.agent.membership import Membership
from llmtrain_trainer.agent.metrics import Book

TIME = "2026-01-01T00:00:00Z"
DOCUMENT = Path(__file__).parents[2] / "docs" / "monitoring.md"


def eventful() -> JobStatus:
    """A job that every series has something to say of, with every value of every label."""
    members = tuple(
        MemberStatus(index=i, incarnation=1, pod=f"a-{i}-1", uid=f"u{i}", host=f"a-{i}", store_port=1) for i in range(4)
    )
    slow = [StragglerStatus(member=i, rank=i, node="n", factor=1.5, since=TIME, step=7, found=True) for i in range(12)]
    over = IncidentStatus(
        number=30,
        time=TIME,
        kind="node",
        reason=names.REASON_POD_LOST,
        round=1,
        detect_seconds=1.0,
        round_seconds=1.5,
        train_seconds=4.0,
        outcome="Recovered",
    )
    return JobStatus(
        state="Running",
        conditions=tuple(
            Condition(type=kind, status="True", reason="Because", last_transition_time=TIME)
            for kind in get_args(ConditionType)
        ),
        round=RoundStatus(number=3, procs_per_member=1, members=members, started_at=TIME),
        replicas=5,
        spares=1,
        target_nodes=6,
        leaving_nodes=(LeavingNodeStatus(name="n", taint="t", pods=("u3",)),),
        progress=ProgressStatus(
            step=7,
            max_steps=100,
            loss=2.5,
            validation_loss=2.6,
            perplexity=13.0,
            tokens_per_second=1e4,
            mfu=0.4,
            learning_rate=1e-4,
            gradient_norm=1.0,
            step_seconds=0.5,
            phase="training",
        ),
        flash=FlashStatus(step=7, committed_step=6, copies=1, stall_seconds=0.01, size=10**9, every=1),
        checkpoint=CheckpointStatus(
            step=5,
            saved_at=TIME,
            stall_seconds=0.1,
            save_seconds=2.0,
            size=10**9,
            restored_step=4,
            restored_round=3,
            restore_seconds=0.7,
            restored_tier="peer",
        ),
        stragglers=tuple(slow),
        incidents=(over,),
        incident_counts=dict.fromkeys((*names.REASONS, OTHER), 1),
        lost_steps_total=2,
        restarts=30,
        ledger=dict.fromkeys(CAUSES, 10.0),
        accelerator_ledger=dict.fromkeys((*CAUSES, IDLE), 40.0),
    )


def families(text: bytes) -> Iterator[Metric]:
    """What the real parser reads in a scrape."""
    return text_string_to_metric_families(text.decode())


def samples(text: bytes) -> dict[str, dict[tuple[str, ...], float]]:
    """Sample name -> label values in order of the labels' names -> value."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in families(text):
        for sample in family.samples:
            key = tuple(value for _, value in sorted(sample.labels.items()))
            found.setdefault(sample.name, {})[key] = sample.value
    return found


def operator_text() -> bytes:
    """A scrape of an operator that leads one eventful job."""
    metrics = Metrics()
    metrics.begin_term(lambda: 1)
    metrics.job("ns", "a", eventful())
    metrics.observe_pass("ns/a", 0.01, 0.02, True)
    metrics.observe_call("patch", "llmtrainjobs", "200")
    return metrics.text()


def coordinator_text() -> bytes:
    """A scrape of a coordinator."""
    return generate_latest(Telemetry().registry)


def member_text() -> bytes:
    """A scrape of a member that trains and was restored."""
    urls, place = ("ws://127.0.0.1:1",), Path("token")
    environment = Environment("ns/a", "a-0-1", "u0", 0, 1, "127.0.0.1", 1, urls, "", place, 5, {})
    membership, book = Membership(environment), Book()
    membership.enter(wire.Round(3, (), 1), 0)
    book.hear(
        wire.Progress(
            0,
            3,
            step=7,
            loss=2.5,
            gradient_norm=1.0,
            learning_rate=1e-4,
            tokens_per_second=1e4,
            mfu=0.4,
            checkpoints=wire.Checkpoints(step=5, restore_seconds=0.7, restored_tier="peer"),
            flash=wire.Flash(step=7, committed=6, stall_seconds=0.01),
        )
    )
    registry = CollectorRegistry()
    registry.register(MemberCollector(environment, membership, book))
    return generate_latest(registry)


SCRAPES: Mapping[str, Callable[[], bytes]] = {
    "operator": operator_text,
    "coordinator": coordinator_text,
    "member": member_text,
}
"""By the name of the table."""


def row(family: Metric) -> str:
    """A line of a table."""
    name = f"{family.name}_total" if family.type == "counter" else family.name
    labels = {label for sample in family.samples for label in sample.labels if label != "le"}
    own = ", ".join(sorted(labels - {"namespace", "job", "member"}))
    return f"| `{name}` | {family.type} | {own} | {family.documentation} |"


def _markers(which: str) -> tuple[str, str]:
    return f"<!-- {which}: python -m tests.support.metrics -->", f"<!-- end of {which} -->"


def table(which: str) -> str:
    """Every series that a scrape shows, with the markers of its place in docs/monitoring.md."""
    begin, end = _markers(which)
    rows = [row(family) for family in families(SCRAPES[which]()) if not family.name.startswith("process_")]
    return "\n".join(
        [begin, "| metric | type | further labels | what it is |", "| --- | --- | --- | --- |", *rows, end]
    )


if __name__ == "__main__":
    text = DOCUMENT.read_text()
    for name in SCRAPES:
        first, last = _markers(name)
        before, _, rest = text.partition(first)
        text = before + table(name) + rest.partition(last)[2]
    DOCUMENT.write_text(text)
