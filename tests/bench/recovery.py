"""`make bench-recovery`: how long training stands still after a fault, beside what torchrun needs for the same model.

A figure is the time from the fault to the next completed optimizer step, less a step's own time. Three members, fp32,
a snapshot at every step and one copy of each; tiny, so that it is recovery that is measured. All on this machine: the
first part as processes, the baselines too, and the last on real kubelets. Nothing fails on a slow machine; the table
says what was met, and a part that breaks off leaves the rows of the others.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Final

import click

from tests.bench import recovery_local, recovery_nodes, recovery_torchrun
from tests.bench.recovery_steps import Trials
from tests.bench.report import Row, clean_up_on_sigterm, publish

LOCAL: Final = {
    "worker": ("worker SIGKILL", 1.0),
    "frozen": ("worker SIGSTOP", 1.0 + 1.0),
    "pod": ("agent and pod killed", 1.5),
    "joins": ("pause when the replacement joins", 1.5),
}
NODES: Final = {
    "off": ("node powered off, Kubernetes' defaults", 5.0),
    "partition": ("node partitioned", 5.0),
    "leader": ("operator's leader and a member's node off together", 15.0),
    "drain": ("pause of a drain", 1.5),
    "joins": ("pause when a node's replacement joins", 1.5),
}
"""What is asked, in seconds. A frozen worker: 1 s until that is noticed, then as one that was killed. A drain: one
restart, which is what a replacement may take."""
RATIO: Final = 0.10


def rows(trials: Trials, title: str, target: float | None) -> list[Row]:
    """Median and worst, and the steps that were done again or lost."""
    times = [trial.seconds for trial in trials]
    middle, worst, again = statistics.median(times), max(times), max(trial.again for trial in trials)
    lost = [trial.lost for trial in trials if trial.lost is not None]
    asked = "" if target is None else f"<= {target:g}"

    def met(value: float, most: float) -> bool | None:
        return None if target is None else value <= most

    found = [
        Row(f"{title}, median of {len(times)}", middle, "s", asked, met(middle, target or 0.0), _each(times)),
        Row(f"{title}, worst", worst, "s", asked, met(worst, target or 0.0), trials[times.index(worst)].told),
    ]
    if lost:  # a fault of ours: what was not yet committed may be done again
        found.append(Row(f"{title}, committed steps lost", max(lost), "", "0", not any(lost), "the most of all"))
        target = None
    found.append(Row(f"{title}, steps done again", again, "", "" if target is None else "0", met(again, 0.0), ""))
    return found


def _each(times: list[float]) -> str:
    return ", ".join(f"{taken:.2f}" for taken in times)


def ratio(ours: Trials, theirs: Trials, name: str) -> Row:
    """Our killed worker against theirs."""
    value = statistics.median(t.seconds for t in ours) / statistics.median(t.seconds for t in theirs)
    return Row(f"worker SIGKILL, ours / {name}", value, "x", f"<= {RATIO}", value <= RATIO, "medians")


class Bench:
    """What was measured so far."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self._worker: Trials = []

    def local(self, count: int) -> None:
        found = recovery_local.trials(count)
        self._worker = found["worker"]
        for name, (title, target) in LOCAL.items():
            self.rows += rows(found[name], title, target)

    def baselines(self, count: int) -> None:
        for launcher in (recovery_torchrun.TUNED, recovery_torchrun.TORCHRUN, recovery_torchrun.dlrover()):
            found = recovery_torchrun.trials(launcher, count, count if launcher.agents > 1 else 0)
            for done, fault in ((found.worker, "worker SIGKILL"), (found.node, "agent and worker SIGKILL")):
                self.rows += rows(done, f"{launcher.name}: {fault}", None) if done else []
            if found.ended:
                self.rows.append(Row(f"{launcher.name}: trains no more", 1, "", "", None, found.ended))
            if self._worker and found.worker:
                self.rows.append(ratio(self._worker, found.worker, launcher.name))

    def nodes(self, count: int) -> None:
        found = recovery_nodes.trials(count)
        for name, (title, target) in NODES.items():
            self.rows += rows(found[name], title, target)


@click.command()
@click.option("--trials", default=10, show_default=True, help="How often each fault is done.")
@click.option("--part", "parts", type=click.Choice(["local", "baselines", "nodes"]), multiple=True, help="Not all.")
def main(trials: int, parts: tuple[str, ...]) -> None:
    """Measure recovery: about an hour, alone on the machine."""
    clean_up_on_sigterm()
    bench = Bench()
    every: dict[str, Callable[[int], None]] = {
        "local": bench.local,
        "baselines": bench.baselines,
        "nodes": bench.nodes,
    }
    try:
        for name in parts or every:
            every[name](trials)
    finally:
        publish("recovery", bench.rows)


if __name__ == "__main__":
    main()
