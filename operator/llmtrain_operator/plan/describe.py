"""What the status says of a job that trains: its state, conditions and progress, as they follow from the round."""

from __future__ import annotations

from typing import Literal

from llmtrain_operator import progress
from llmtrain_operator.conditions import is_true
from llmtrain_operator.contract.wire import Round
from llmtrain_operator.plan.draft import Draft


def describe(run: Draft) -> None:
    """State, conditions and progress that follow from the round."""
    recovering = is_true(run.status.conditions, "Recovering")
    current = run.round
    if current is None:
        scheduled = any(pod.scheduled for pod in run.observed.pods)
        starting: Literal["Starting", "Pending"] = "Starting" if scheduled else "Pending"
        run.set(state="Recovering" if recovering else starting, nodes=f"0/{run.wanted}")
        return
    run.set(nodes=f"{len(current.members)}/{run.wanted}")
    run.set(**progress.newest(run.status, run.observed.agents, run.now))
    if run.status.state != "Running":
        run.set(state="Recovering" if recovering else "Starting")
        run.condition("Running", False, "StartingWorkers", f"round {current.number}: workers are being started")
    if _trains(run, current):
        run.set(state="Running")
        run.condition("Running", True, "Training", f"round {current.number} with {len(current.members)} members")
        run.condition("Recovering", False, "Training", f"round {current.number} runs")
    _describe_size(run, len(current.members))


def _trains(run: Draft, current: Round) -> bool:
    """Whether the round's workers are at it: all in this round, and past loading if they tell their progress."""
    here = (run.observed.agents.get(member.uid) for member in current.members)
    reports = [agent.report for agent in here if agent and agent.report]
    in_round = all(r.round == current.number and r.state in ("running", "succeeded") for r in reports)
    said = run.status.progress
    return in_round and bool(run.spec.entrypoint if said is None else said.phase != "loading")


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
