"""Brings a job's ledger up to date: the status fields that have to do with time, from one pass to the next.

Pure. Guarantee: the ledger's sum is the time since the job's start, whatever happens. What the members measured counts,
also of the time while no operator was there; of a round whose members tell nothing, an older image's or a script's of
the user's, what the status said counts. Limits: before the operator saw the job nothing is booked; accelerators are
counted as the pods are at the end of each stretch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

from llmtrain_operator.api import JobStatus, TallyStatus, UnheardStatus
from llmtrain_operator.conditions import seconds, timestamp
from llmtrain_operator.contract.wire import BEFORE_TRAINING, Progress, Spent
from llmtrain_operator.goodput import IDLE, Cause, book, goodput, moved, replaced, timeline
from llmtrain_operator.goodput.rounds import Account, Ground, account, at
from llmtrain_operator.progress import said
from llmtrain_operator.state import AgentView

Agents = Mapping[str, AgentView]


def booked(status: JobStatus, agents: Agents, now: float, held: int) -> dict[str, Any]:
    """The status fields with the time up to `now`. `held`: workers that the job's pods have room for."""
    if status.ledger_time is None:
        return {"ledger_time": timestamp(now)}
    # In whole milliseconds of the written times, or a repeated pass would book what rounding leaves.
    passed = round(seconds(timestamp(now)) - seconds(status.ledger_time), 3)
    if passed <= 0:
        return {}
    if status.round is None:
        tally = status.tally.model_copy(update={"seconds": {}, "lead": None} | _resumes(status))
        ledger = book(status.ledger, _between(status, now), passed)
        paid = _replaced_times(status.accelerator_ledger, status.ledger, ledger, held)
        return {**_fields(status, ledger, paid, tally), "ledger_time": timestamp(now)}
    status = _in_round(status)
    tally = status.tally
    if found := _told(status, agents):
        status = _heard(status, *found)
        own = _account(status, *found, passed, lost=False)
        tally = status.tally.model_copy(update={"seconds": own.seconds, "lead": own.lead})
    else:
        tally = tally.model_copy(update={"seconds": book(tally.seconds, _as_it_seemed(status), passed)})
    ledger = replaced(status.ledger, status.tally.seconds, tally.seconds)
    paid = _replaced_times(status.accelerator_ledger, status.ledger, ledger, _workers(status))
    paid = book(paid, IDLE, max(0, held - _workers(status)) * passed)
    return {**_fields(status, ledger, paid, tally), "ledger_time": timestamp(now)}


def lost(status: JobStatus, agents: Agents, now: float) -> dict[str, Any]:
    """The status fields when the round turns out to be lost, booked up to `now`: since the last step nothing was done,
    though it seemed so. The step in progress is part of that."""
    status = _in_round(status)
    found = _told(status, agents)
    before = status.ledger if status.tally.before is None else status.tally.before
    if found:
        told, spent = found
        own = _account(status, told, spent, 0.0, lost=True)
        ledger = replaced(status.ledger, status.tally.seconds, own.seconds)
        end = None
        if spent.steps and told.phase not in BEFORE_TRAINING:
            pace, workers = round(spent.stepping / spent.steps, 6), _workers(status)
            end = UnheardStatus(step=told.step, pace=pace, seconds=own.tail, workers=workers)
        tally = status.tally.model_copy(update={"unheard": end})
    else:
        ledger = _unnoticed(status, now)
        tally = status.tally
    after = tally.model_copy(update={"before": before, "seconds": {}})
    paid = _replaced_times(status.accelerator_ledger, status.ledger, ledger, _workers(status))
    return _fields(status, ledger, paid, after)


def _replaced_times(
    paid: Mapping[str, float], before: Mapping[str, float], after: Mapping[str, float], workers: int
) -> dict[str, float]:
    """`paid`, accelerator time, with `workers` times what changed in the ledger."""
    return replaced(paid, _times(before, workers), _times(after, workers))


def _times(ledger: Mapping[str, float], workers: int) -> dict[str, float]:
    return {cause: length * workers for cause, length in ledger.items()}


def _resumes(status: JobStatus) -> dict[str, Any]:
    return {"cause": "starting"} if status.state == "Suspended" else {}


def _between(status: JobStatus, until: float) -> Cause:
    """What the time up to `until` went to, without a round."""
    if status.state == "Suspended":
        return "suspended"
    if status.not_before and until <= seconds(status.not_before):
        return "backoff"
    return cast("Cause", status.tally.doing or status.tally.cause)


def _in_round(status: JobStatus) -> JobStatus:
    """With a tally of the current round."""
    assert status.round is not None
    number = status.round.number
    if status.tally.round == number:
        return status
    fresh = status.tally.model_copy(update={"round": number, "seconds": {}, "lead": None, "doing": ""})
    return status.model_copy(update={"tally": fresh})


def _told(status: JobStatus, agents: Agents) -> tuple[Progress, Spent] | None:
    """The account of the lowest rank that gives one. All are where the furthest is, so it counts as there too: that of
    another would differ a little in everything, and so would what was booked."""
    told = [(each, each.spent) for each in said(status, agents) if each.spent]
    if not told:
        return None
    first, spent = told[0]
    step = max(each.step for each, _ in told)
    if step > first.step and spent.steps:
        more = step - first.step
        stepping = spent.stepping * (1 + more / spent.steps)
        first, spent = replace(first, step=step), replace(spent, steps=spent.steps + more, stepping=stepping)
    return first, spent


def _account(status: JobStatus, told: Progress, spent: Spent, passed: float, *, lost: bool) -> Account:
    wall = round(sum(status.tally.seconds.values()) + passed, 3)
    return account(told, spent, _ground(status), wall, status.tally.lead, lost=lost)


def _ground(status: JobStatus) -> Ground:
    ending = status.round.ending if status.round else None
    is_resize = ending is not None and ending.reason == "Resize"
    saving: Cause = "durableWait" if not is_resize else "drain" if ending and ending.leaving else "resize"
    return Ground(cast("Cause", status.tally.cause), status.best_step, saving)


def _as_it_seemed(status: JobStatus) -> Cause:
    """What a round does of which no worker tells where its time goes."""
    told = status.progress
    phase = told.phase if told else "training" if status.state == "Running" else "loading"
    return at(phase, told.step if told else status.best_step, _ground(status))


def _heard(status: JobStatus, told: Progress, spent: Spent) -> JobStatus:
    """This round has taken a step, so that it is known where the one before it really ended."""
    end = status.tally.unheard
    if end is None or not spent.steps or told.phase in BEFORE_TRAINING:
        return status
    steps = told.step - spent.steps - end.step
    done = round(min(steps * end.pace, end.seconds), 3) if steps > 0 else 0.0
    ledger = moved(status.ledger, "detect", "productive", done)
    paid = _replaced_times(status.accelerator_ledger, status.ledger, ledger, end.workers)
    tally = status.tally.model_copy(update={"unheard": None})
    return status.model_copy(update=_fields(status, ledger, paid, tally))


def _unnoticed(status: JobStatus, now: float) -> dict[str, float]:
    """The ledger of a lost round whose members told nothing of their time: but for one step it did nothing since it
    last told of one."""
    told = status.progress
    if told is None or told.updated_at is None or told.phase in BEFORE_TRAINING:
        return dict(status.ledger)
    idle = now - seconds(told.updated_at) - (told.step_seconds or 0.0)
    return moved(status.ledger, _as_it_seemed(status), "detect", idle)


def _workers(status: JobStatus) -> int:
    return len(status.round.members) * status.round.procs_per_member if status.round else 0


def _fields(
    status: JobStatus, ledger: Mapping[str, float], paid: Mapping[str, float], tally: TallyStatus
) -> dict[str, Any]:
    share = goodput(ledger)
    short = {name: round(value, 3) for name, value in ledger.items()}
    return {
        "ledger": short,
        "accelerator_ledger": {name: round(value, 3) for name, value in paid.items()},
        "goodput": None if share is None else f"{share:.1%}",
        "timeline": timeline.grown(status.timeline, status.ledger, short),
        "tally": tally,
    }
