"""What the status says of a job that trains: its state, conditions and progress, as they follow from the round."""

from __future__ import annotations

from llmtrain_operator import progress
from llmtrain_operator.api import State
from llmtrain_operator.conditions import is_true
from llmtrain_operator.plan.aftermath import recovered
from llmtrain_operator.plan.draft import Draft
from llmtrain_operator.plan.muster import muster


def describe(run: Draft) -> None:
    """State, conditions and progress that follow from the round."""
    current = run.round
    size = len(current.members) if current else 0
    run.set(nodes=f"{size}/{run.wanted}", spares=_spares(run))
    if current is None:
        scheduled = any(pod.scheduled for pod in run.observed.pods)
        run.set(state=_on_the_way(run, "Starting" if scheduled else "Pending"))
        return
    run.set(**progress.newest(run.status, run.observed.agents, run.now))
    if run.trains:
        run.condition("Running", True, "Training", f"round {current.number} with {size} members")
        run.condition("Recovering", False, "Training", f"round {current.number} runs")
        run.set(state="Running")
        recovered(run)
    elif run.status.state != "Running" and run.ending is None:
        run.condition("Running", False, "StartingWorkers", f"round {current.number}: workers are being started")
        run.set(state=_on_the_way(run, "Starting"))
    if run.ending and run.ending.reason == "Resize":
        run.set(state="Resizing")


def _spares(run: Draft) -> int | None:
    """How many could take a member's place now."""
    if not run.spec.nodes.spares:
        return None
    ready = muster(run).ready
    current = run.round
    if current is None:
        return max(0, len(ready) - run.wanted)
    return sum(current.rank_of(member.uid) is None for member in ready)


def _on_the_way(run: Draft, otherwise: State) -> State:
    """The state of a job that does not train yet, or again."""
    if is_true(run.status.conditions, "Recovering"):
        return "Recovering"
    return "Resizing" if run.status.state == "Resizing" else otherwise
