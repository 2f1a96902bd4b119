"""What the status says of a job that trains: its state, conditions and progress, as they follow from the round."""

from __future__ import annotations

from typing import Literal

from llmtrain_operator import progress
from llmtrain_operator.plan.draft import Draft


def describe(run: Draft) -> None:
    """State, conditions and progress that follow from the round."""
    current = run.round
    first = run.status.rounds <= 1 and not run.status.restarts
    if current is None:
        scheduled = any(pod.scheduled for pod in run.observed.pods)
        waiting: Literal["Starting", "Pending"] = "Starting" if scheduled else "Pending"
        run.set(state=waiting if first and not run.status.restarts else "Recovering", nodes=f"0/{run.wanted}")
        if not first:
            run.condition("Recovering", True, "RoundEnded", "the next round is being formed")
        return
    run.set(nodes=f"{len(current.members)}/{run.wanted}")
    run.set(**progress.newest(run.status, run.observed.agents, run.now))
    here = [run.observed.agents.get(member.uid) for member in current.members]
    working = all(
        a is None
        or a.report is None
        or (a.report.round == current.number and a.report.state in ("running", "succeeded"))
        for a in here
    )
    trained = run.status.progress is not None and run.status.progress.phase != "loading"
    if working and (trained or run.spec.entrypoint):
        run.set(state="Running")
        run.condition("Running", True, "Training", f"round {current.number} with {len(current.members)} members")
        run.condition("Recovering", False, "Training", f"round {current.number} runs")
    elif run.status.state != "Running":
        run.set(state="Starting" if first else "Recovering")
        run.condition("Running", False, "StartingWorkers", f"round {current.number}: workers are being started")
    _describe_size(run, len(current.members))


def _describe_size(run: Draft, size: int) -> None:
    if size == run.wanted:
        run.condition("Resizing", False, "AtTarget", f"{size} members, as wanted")
        return
    run.condition(
        "Resizing",
        True,
        "AtNextRound",
        f"{size} of {run.wanted} wanted members train; without checkpoints a resize now would begin again at step 0, "
        "so it takes effect when the next round starts",
    )
