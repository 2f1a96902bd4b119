"""What a campaign found, as text and as JSON. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from llmtrain_operator.chaos.run import Trial


def table(trials: Sequence[Trial]) -> RenderableType:
    """One row per fault; seconds since the fault, as the job's incidents tell them."""
    if not trials:
        return Text("no faults were done")
    rows = Table(box=None, header_style="", pad_edge=False, padding=(0, 2, 0, 0))
    for head in ("#", "FAULT", "MEMBER", "REASON", "DETECTED", "NEXT ROUND", "NEXT STEP", "LOST STEPS", "AS BEFORE"):
        rows.add_column(head)
    for trial in trials:
        for place, each in enumerate(trial.struck):
            member = "all" if each.member < 0 else str(each.member)
            rows.add_row(str(each.number), each.fault.name, member, *(_came_of(trial) if not place else ("with it",)))
    wrongs = [wrong for trial in trials for wrong in trial.wrongs]
    end = Text(summary(trials), "bold red" if wrongs else "bold green")
    return Group(rows, *(Text(f"! {wrong}") for wrong in wrongs), end)


def _came_of(trial: Trial) -> tuple[str, ...]:
    if not trial.incidents:
        return "no round was lost", "", "", "", "0", f"{trial.seconds:.1f}s"
    first, last = trial.incidents[0], trial.incidents[-1]
    lost = sum(each.lost_steps or 0 for each in trial.incidents)
    times = first.detect_seconds, last.round_seconds, last.train_seconds
    told = ("" if value is None else f"{value:.1f}s" for value in times)
    reasons = ", ".join(dict.fromkeys(each.reason for each in trial.incidents))
    return reasons, *told, str(lost), f"{trial.seconds:.1f}s"


def summary(trials: Sequence[Trial]) -> str:
    """In one line."""
    faults = sum(len(trial.struck) for trial in trials)
    wrong = sum(bool(trial.wrongs) for trial in trials)
    lost = sum(each.lost_steps or 0 for trial in trials for each in trial.incidents)
    return f"{faults} faults, {lost} committed steps lost, {wrong or 'nothing'} went wrong"


def as_json(seed: int, trials: Sequence[Trial]) -> dict[str, Any]:
    """Everything."""
    return {
        "seed": seed,
        "trials": [
            {
                "faults": [
                    {"number": each.number, "fault": each.fault.name, "member": each.member, "did": each.did}
                    for each in trial.struck
                ],
                "incidents": [each.model_dump(mode="json", by_alias=True) for each in trial.incidents],
                "seconds": trial.seconds,
                "wrongs": list(trial.wrongs),
            }
            for trial in trials
        ],
    }
