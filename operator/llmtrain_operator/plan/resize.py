"""A round that is to end at a step boundary: because the job is to have another size, or to be suspended.

Members are told to save and leave. Training goes on until their state is in storage, for as long as that takes; when
they have left, a new round begins with everybody who is ready. Once told it is not taken back: workers that were asked
to leave do so as soon as they can, and going on from a fresh checkpoint costs seconds.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from llmtrain_operator import membership, progress
from llmtrain_operator.api import EndingStatus
from llmtrain_operator.conditions import find, seconds, timestamp
from llmtrain_operator.contract.wire import Round
from llmtrain_operator.plan.draft import Draft
from llmtrain_operator.plan.flash import restorable
from llmtrain_operator.plan.muster import muster

SAVE_PATIENCE = 120.0
"""Seconds after which members that have not left are late: said while none has, not waited for when some have."""
GROWTH_PATIENCE = 30.0
"""Seconds that a round which could grow waits for the rest of those it wants, so as to grow once."""
NEAR_END = 15.0
"""Seconds before its end in which a job is left alone: another round would take longer."""


@dataclass(frozen=True, slots=True)
class Sizing:
    """Whether a round is of the size that is wanted (`fits`), is to end because it is not (`end`), and why or why
    not."""

    fits: bool
    end: bool
    reason: str
    message: str


def decide(run: Draft) -> None:
    """Have the round end if that is due, and say in condition Resizing (or Suspended) how it stands."""
    current = run.round
    if current is None:
        return
    if run.ending is None:
        sizing = judge_size(run, current)
        run.condition("Resizing", not sizing.fits, sizing.reason, sizing.message)
        if run.spec.suspend and run.resumable:
            _begin(run, "Suspend", "spec.suspend is true")
        elif leaving := _departing(run, current):
            _begin(run, "Resize", leaving, leave=True)
        elif sizing.end:
            _begin(run, "Resize", sizing.message)
    if run.ending is not None:
        _follow(run, current, _for_what(run, run.ending))


def part(run: Draft, current: Round) -> None:
    """Have the round end if some of its members are made to go while they may still save what they have done. Those
    that were told by someone else may be quicker than we are: they, and the others with them, may have left by now."""
    if run.ending is not None or not run.has_begun or not _goes_on(run):
        return
    told = membership.told_to_end(current, run.observed.agents)
    if told:
        _begin(run, "Resize", f"{_names(current, told)} was told to end", leave=True)
    elif leaving := drained(run, current):
        _begin(run, "Resize", f"{_names(current, leaving)} is being deleted", leave=True)


def drained(run: Draft, current: Round) -> frozenset[str]:
    """UIDs of members that are made to go, as long as they may still save what they have done."""
    if not run.trains or not _goes_on(run):
        return frozenset()
    return membership.drained(current, run.pods, run.observed.agents)


def _goes_on(run: Draft) -> bool:
    """Whether another round, without those who go, could go on where this one ends."""
    return run.resumable or restorable(run) is not None


def _departing(run: Draft, current: Round) -> str:
    """Which members are to leave because their nodes do, and can now; empty if none are."""
    whys: dict[str, list[str]] = {}
    for member in current.members:
        if why := run.departing.get(member.uid):
            whys.setdefault(why, []).append(member.pod)
    text = "; ".join(f"{', '.join(pods)}: {why}" for why, pods in sorted(whys.items()))
    return text if text and held(run, shrinks=False) is None else ""


def _names(current: Round, uids: Collection[str]) -> str:
    return ", ".join(sorted(member.pod for member in current.members if member.uid in uids))


def left(run: Draft, current: Round) -> frozenset[str]:
    """UIDs of members that have left the round because they were told to."""
    if run.ending is None:
        return frozenset()
    return membership.left(current, run.observed.agents, anyhow=run.spec.entrypoint is not None)


def over(run: Draft, current: Round, done: frozenset[str], lost: tuple[membership.Loss, ...]) -> bool:
    """Whether the round has ended as planned: the state is saved, since some have left, and nobody is to be waited for.

    `done`: UIDs of the members that have succeeded. `lost`: those that are lost otherwise, which does no harm any more
    then; without them the reference trainer's others cannot end by themselves either.
    """
    gone = left(run, current)
    if run.ending is None or not gone:
        return False
    stuck = bool(lost) and run.spec.entrypoint is None
    return stuck or len(gone | done) + len(lost) == len(current.members) or _late(run, run.ending)


def _late(run: Draft, ending: EndingStatus) -> bool:
    return run.now - seconds(ending.since) >= SAVE_PATIENCE


def _begin(run: Draft, reason: Literal["Resize", "Suspend"], message: str, *, leave: bool = False) -> None:
    assert run.status.round is not None
    ending = EndingStatus(reason=reason, message=message, since=timestamp(run.now), leaving=leave)
    run.set(round=run.status.round.model_copy(update={"ending": ending}))
    run.tell("RoundEnding", f"round {run.status.round.number} is to save its state and end: {message}")


def _for_what(run: Draft, ending: EndingStatus) -> EndingStatus:
    """`ending`, on record with another reason if the user has changed spec.suspend since."""
    assert run.status.round is not None
    if (ending.reason == "Suspend") != run.spec.suspend:
        reason, value = ("Suspend", "true") if run.spec.suspend else ("Resize", "false again")
        ending = ending.model_copy(update={"reason": reason, "message": f"spec.suspend is {value}"})
        run.set(round=run.status.round.model_copy(update={"ending": ending}))
    return ending


def _follow(run: Draft, current: Round, ending: EndingStatus) -> None:
    """Say how far it is."""
    if not _late(run, ending):
        run.wake_in(seconds(ending.since) + SAVE_PATIENCE - run.now)
    reason, how = _how(run, current, ending)
    if ending.reason == "Suspend":
        run.condition("Suspended", False, reason, f"{ending.message}; {how}")
    else:
        run.condition("Resizing", True, reason, f"{ending.message}; {how}")


def _how(run: Draft, current: Round, ending: EndingStatus) -> tuple[str, str]:
    known = run.status.checkpoint
    if known and known.error:
        return known.error_reason or "SaveFailed", f"saving fails, so training goes on until it works: {known.error}"
    if _late(run, ending):
        there = f"{len(left(run, current))} of {len(current.members)} members"
        return "SaveOverdue", f"only {there} have saved and left within {SAVE_PATIENCE:.0f} s"
    return "Saving", "the members save their state and leave at a step boundary"


def judge_size(run: Draft, current: Round) -> Sizing:
    """Compare the running round with what is wanted."""
    size, wanted = len(current.members), run.wanted
    if size == wanted:
        return Sizing(True, False, "AtTarget", f"{size} members, as wanted")
    text = f"{size} of {wanted} wanted members train" if size < wanted else f"{size} members train, {wanted} are wanted"
    if why := held(run, shrinks=size > wanted):
        return Sizing(False, False, why[0], f"{text}; {why[1]}")
    return Sizing(False, True, "Saving", text) if size > wanted else _growth(run, current, text)


def held(run: Draft, *, shrinks: bool) -> tuple[str, str] | None:
    """Why a round of the wrong size is left alone, if it is."""
    assert run.status.round is not None
    asked = run.status.round.wanted not in (None, run.wanted)
    # Those who go take their memory with them; those who come take nothing away.
    can_go_on = run.resumable if shrinks else _goes_on(run)
    if not can_go_on and not (run.spec.entrypoint and asked):
        return "AtNextRound", _without_checkpoints(run)
    if not run.trains:
        return "AfterStart", "the round has only just begun"
    left = progress.seconds_left(run.status)
    told = run.status.progress
    if (left is not None and left < NEAR_END) or (told and told.phase in ("exporting", "done")):
        return "NearEnd", "the job is about to end, so it is left alone"
    return None


def _without_checkpoints(run: Draft) -> str:
    then = "it takes effect when the next round starts"
    if run.spec.entrypoint:
        return f"the script has reported no checkpoint, so {then}"
    return (
        "without checkpoints a resize now would begin again at step 0, "
        f"so {then}; spec.checkpoint.durable.storage makes it possible at any time"
    )


def _growth(run: Draft, current: Round, text: str) -> Sizing:
    """Grow when all that are wanted are ready, or some have been waiting for the others for long enough."""
    there = muster(run)
    more = [member for member in there.ready if current.rank_of(member.uid) is None]
    here = {member.index for member in current.members}
    room = run.wanted - len(current.members)
    missing = {index: what for index, what in there.missing.items() if index not in here}
    if len(more) >= room:
        missing = {}  # the others would be spares
    if missing:
        text = f"{text} ({membership.together(missing)})"
    if not more:
        return Sizing(False, False, "WaitingForMembers", text)
    left = GROWTH_PATIENCE - _short_for(run)
    if missing and left > 0:
        run.wake_in(left)
        return Sizing(False, False, "WaitingForMembers", text)
    count = min(len(more), room)
    return Sizing(False, True, "Saving", f"{text}; {count} more {'are' if count > 1 else 'is'} ready")


def _short_for(run: Draft) -> float:
    """Seconds since the job is not of the size that is wanted."""
    known = find(run.status.conditions, "Resizing")
    return run.now - seconds(known.last_transition_time) if known and known.status == "True" else 0.0
