"""What a lost round cost, booked while the job goes on, is held, or ends: see `incidents`."""

from __future__ import annotations

from math import isfinite
from typing import Literal

from llmtrain_operator import goodput, incidents, membership, progress
from llmtrain_operator.api import RollbackStatus
from llmtrain_operator.conditions import seconds, short
from llmtrain_operator.contract.wire import BEFORE_TRAINING, Round
from llmtrain_operator.plan.blame import Blame
from llmtrain_operator.plan.draft import Draft
from llmtrain_operator.state import AgentView

COST_PATIENCE = 5.0
"""Seconds after an incident until what it cost is final."""


def begin_incident(
    run: Draft, current: Round, found: Blame, lost: tuple[membership.Loss, ...], back: RollbackStatus | None
) -> None:
    """The round `current` is lost; `back`: where training is taken back to on purpose."""
    agents = (run.observed.agents.get(loss.member.uid) for loss in lost)
    ago = [known for agent in agents if agent and (known := _known_for(agent, current)) is not None]
    flash = run.status.flash.committed_step if run.status.flash else None
    fault = incidents.Fault(
        round=current.number,
        reason=found.cause.reason,
        message=short(found.cause.message, 512),
        member=found.member.index,
        ago=max(ago, default=0.0),
        committed=max(flash or 0, run.checkpoint_step or 0),
        back_to=back.to if back else None,
    )
    run.set(incidents=incidents.begun(run.status.incidents, fault, run.now))


def _known_for(agent: AgentView, current: Round) -> float | None:
    """Seconds since the last sign of life of a lost member, or since its workers failed or hung; None: nobody knows."""
    if not agent.connected:
        return agent.quiet + agent.silent_for
    failed = agent.report.failure if agent.report else None
    if failed is None or failed.round != current.number or not isfinite(agent.failed_for):
        return None
    return failed.lasted + agent.failed_for


def recovered(run: Draft) -> None:
    """The round after a lost one trains: say what that cost, and whether it was promised to cost less."""
    restored = _restored(run)
    if not _has_stepped(run, restored or 0):
        return
    after = incidents.trains(run.status.incidents, restored, run.now)
    if after != run.status.incidents:
        _close(run, _with_cost(run, after))
        run.tell("Recovered", incidents.told(after[-1]))
        _judge(run)
    if run.step >= run.status.best_step and _has_lasted(run):
        settle_cost(run)


def settle_cost(run: Draft) -> None:
    """What the newest incident cost is known: all is done again, or not going to be. One that is not over goes on."""
    known = run.status.incidents
    if run.status.tally.before is not None and (not known or known[-1].outcome):
        run.set(incidents=_with_cost(run, known), tally=run.status.tally.model_copy(update={"before": None}))


def _has_lasted(run: Draft) -> bool:
    """Whether it is some time ago that the newest incident was over: reports are late, and say more of the time before
    them."""
    last = run.status.incidents[-1] if run.status.incidents else None
    over = seconds(last.time) + (last.train_seconds or 0.0) if last else 0.0
    return run.now - over >= COST_PATIENCE


def _with_cost(run: Draft, known: incidents.Incidents) -> incidents.Incidents:
    before = run.status.tally.before
    if before is None or not known:
        return known
    badput = goodput.cost(run.status.ledger, before)
    return (*known[:-1], known[-1].model_copy(update={"badput": badput}))


def _restored(run: Draft) -> int | None:
    """The step that this round began at; None: a script of the user's has not told."""
    known, current = run.status.checkpoint, run.round
    if known and current and known.restored_round == current.number and known.restored_step is not None:
        return known.restored_step
    return None if run.spec.entrypoint else 0


def _has_stepped(run: Draft, restored: int) -> bool:
    """Whether a step of this round was told of, or what comes after the last. Of a script that tells nothing it is all
    that can be known that it runs."""
    told = progress.said(run.status, run.observed.agents)
    if not told:
        return run.spec.entrypoint is not None and run.status.best_step == 0
    return told[0].phase not in BEFORE_TRAINING and (told[0].phase != "training" or told[0].step > restored)


def _judge(run: Draft) -> None:
    """Whether the newest incident, which is over, kept what was promised."""
    objectives = run.spec.recovery.objectives
    if objectives is None:
        return
    last = run.status.incidents[-1]
    wrong = incidents.broken(last, objectives)
    text = f"incident {last.number}: {'; '.join(wrong) or incidents.told(last)}"
    run.condition("ObjectivesMet", not wrong, "ObjectivesMissed" if wrong else "ObjectivesMet", text)
    if wrong:
        run.tell("ObjectivesMissed", text, warning=True)


def end_incident(run: Draft, outcome: Literal["Suspended", "Complete", "Failed"]) -> None:
    """The job is held, or has come to its end, with an incident that is not over."""
    after = incidents.ended(run.status.incidents, outcome)
    was_open = after != run.status.incidents
    if was_open:
        _close(run, after)
    settle_cost(run)
    if was_open and outcome == "Failed":
        _judge(run)


def _close(run: Draft, after: incidents.Incidents) -> None:
    """The newest incident is over: it counts, also when others have taken its place in the status."""
    over = after[-1]
    run.set(
        incidents=after,
        incident_counts=incidents.tally(run.status.incident_counts, over),
        lost_steps_total=run.status.lost_steps_total + (over.lost_steps or 0),
    )
