"""`make bench-goodput`: how much of a job's time is training under faults, and whether the ledger says so truly.

`agreement`: three members as processes, workers killed again and again; the ledger beside the trainer's own log of its
steps, which no operator has a hand in. `faults`: the same job on real kubelets for ten minutes, a worker killed each
time that 100, then 40 of the measured recoveries would fit in; beside each goodput the best there can be, 1 - R/T.
`sizes`: a node that comes, and a job of higher priority, under `spec.autoscale`.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from llmtrain_operator.conditions import seconds as since_1970
from llmtrain_operator.contract import names
from llmtrain_operator.goodput import goodput
from llmtrain_operator.local.folder import RunFolder
from tests.bench import goodput_nodes, goodput_sizes
from tests.bench.recovery_local import MEMBERS, Job
from tests.bench.recovery_steps import Snapshots
from tests.bench.report import Row, clean_up_on_sigterm, publish
from tests.support.local import Local, spec
from tests.support.steplog import Sums, read, summed

_ASKED: Final = 0.95
AGREE: Final = 0.005
"""Of the job's time, between the ledger and the log."""


@dataclass(frozen=True)
class Outcome:
    """How a job ended: its status, and the log's account."""

    status: dict[str, Any]
    log: Sums


def agreement(steps: int, kills: int) -> list[Row]:
    """The ledger of a job under so many kills against the log of its steps."""
    with tempfile.TemporaryDirectory(prefix="llmtrain-bench-") as name:
        found = _struck(Path(name), steps, kills)
    return compared(found)


def compared(found: Outcome) -> list[Row]:
    """Rows of a job's time by the ledger and by the log."""
    ledger, log = found.status["ledger"], found.log
    wall = sum(ledger.values())
    lived = _lived(found.status)
    stalled = ledger.get("snapshot", 0.0) + ledger.get("durableWait", 0.0)
    pairs = (
        ("productive", ledger.get("productive", 0.0), log.productive),
        ("recompute", ledger.get("recompute", 0.0), log.recompute),
        ("data wait", ledger.get("dataWait", 0.0), log.data),
        ("snapshot and durable stall", stalled, log.stalled),
    )
    rows = [_row(what, ours, theirs, wall) for what, ours, theirs in pairs]
    sums = abs(wall - lived) / lived
    rest = {cause: round(lasted, 2) for cause, lasted in ledger.items() if lasted}
    killed = f"{found.status['restarts']} kills in {wall:.0f} s, goodput {found.status['goodput']}; {rest}"
    rows.append(Row("ledger's sum against wall time", sums * 100, "%", "<= 0.1", sums <= 0.001, killed))
    return rows


def _row(what: str, ours: float, theirs: float, wall: float) -> Row:
    apart = abs(ours - theirs) / wall
    told = f"ledger {ours:.2f} s, step log {theirs:.2f} s of {wall:.0f} s"
    return Row(f"{what}: ledger against step log", apart * 100, "%", f"<= {AGREE * 100:g}", apart <= AGREE, told)


def faults(seconds: float) -> list[Row]:
    """Goodput on nodes, where a worker dies each time that 100, then 40 recoveries would fit in."""
    with goodput_nodes.site() as there:
        took = there.recovery()
        rows = [Row("what a worker's death costs, median", took, "s", "", None, "by the ledger's incidents")]
        for factor in goodput_nodes.FACTORS:
            rows += lived(there.life(seconds, factor * took), factor)
    return rows


def lived(life: goodput_nodes.Life, factor: int) -> list[Row]:
    """Rows of one job: from its application on, and from its first step on."""
    ledger = life.status["ledger"]
    since = {cause: lasted - life.begun.get(cause, 0.0) for cause, lasted in ledger.items()}
    ideal = 1 - 1 / factor
    title = f"a fault every {factor} recoveries"
    rest = {cause: round(lasted, 1) for cause, lasted in ledger.items() if lasted}
    whole, later = goodput(ledger) or 0.0, goodput(since) or 0.0
    asked = ("100 recoveries: >= 95", whole >= _ASKED) if factor == max(goodput_nodes.FACTORS) else ("", None)
    step = life.status["progress"]["stepSeconds"]
    told = f"{life.faults} faults in {sum(ledger.values()):.0f} s, steps of {step:.2f} s, ideal {ideal:.1%}; {rest}"
    return [
        Row(f"{title}: goodput since the job was applied", whole * 100, "%", *asked, told),
        Row(f"{title}: goodput since its first steps", later * 100, "%", "", None, f"ideal {ideal:.1%}"),
    ]


def _lived(status: dict[str, Any]) -> float:
    return since_1970(status["completionTime"]) - since_1970(status["startTime"])


def _struck(folder: Path, steps: int, kills: int) -> Outcome:
    log = folder / "steps.jsonl"
    with _training(folder, steps, {names.ENV_STEP_LOG: str(log), "OMP_NUM_THREADS": "1"}) as (run, job):
        for number in range(kills):
            job.fault(job.kill_worker, number % MEMBERS)
            time.sleep(4)
        run.ends_with(0, 1800)
        return Outcome(run.status, summed(read(log)))


@contextlib.contextmanager
def _training(folder: Path, steps: int, environment: dict[str, str]) -> Iterator[tuple[Local, Job]]:
    """A job of so many steps without an evaluation, which the log would know nothing of. Not every step has a snapshot,
    so that some are done again."""
    flash = {"flash": {"everySteps": 10, "replicas": 1}}
    wanted = spec(steps, nodes={"min": MEMBERS}, checkpoint=flash, recovery={"maxRestarts": 1000})
    wanted["data"]["validationFraction"] = 0
    memories = RunFolder(folder / "local/jobs/j")
    run = Local(folder, wanted, MEMBERS, **environment)
    try:
        with Snapshots(lambda: memories.memories.glob("*")) as seen:
            yield run, Job(run, seen)
    finally:
        run.kill()
        memories.forget_memories()


@click.command()
@click.option("--steps", default=6000, show_default=True, help="Of the job in `agreement`.")
@click.option("--kills", default=12, show_default=True, help="In `agreement`.")
@click.option("--seconds", default=600.0, show_default=True, help="Of each job in `faults`.")
@click.option("--part", "parts", type=click.Choice(["agreement", "faults", "sizes"]), multiple=True, help="Not all.")
def main(steps: int, kills: int, seconds: float, parts: tuple[str, ...]) -> None:
    """Measure goodput: alone on the machine."""
    clean_up_on_sigterm()
    rows: list[Row] = []
    every: dict[str, Callable[[], Iterable[Row]]] = {
        "agreement": lambda: agreement(steps, kills),
        "faults": lambda: faults(seconds),
        "sizes": goodput_sizes.run,
    }
    try:
        for name in parts or every:
            rows.extend(every[name]())
    finally:
        publish("goodput", rows)


if __name__ == "__main__":
    main()
