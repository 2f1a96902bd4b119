"""Members that are persistently slower than their peers: told by condition Straggling and by events, and replaced, one
at a time, if spec.recovery.straggler says so.

The pod of a replaced member is deleted, so it saves and leaves like any that is drained, and another takes its place.
That one keeps off the node, where pods can be told to; whoever is slow on the node that the last one was taken from is
left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from llmtrain_operator import stragglers
from llmtrain_operator.api import ReplacedStatus, StragglerStatus
from llmtrain_operator.conditions import find, seconds, timestamp
from llmtrain_operator.contract.wire import Pace, Round
from llmtrain_operator.plan.avoid import avoid
from llmtrain_operator.plan.draft import Draft
from llmtrain_operator.plan.flash import restorable
from llmtrain_operator.state import DeletePod, PodView

PAUSE: Final = 600.0
"""Seconds between two replacements: each costs two rounds, and the next pod may be as slow."""
WORTH: Final = 300.0
"""Seconds that training has to take still for a replacement to pay."""


def note_stragglers(run: Draft) -> None:
    """Take in how fast the workers of the current round are, while they do nothing but train."""
    paces = _paces(run)
    told = run.status.progress
    if paces and run.trains and not run.ending and told and told.phase == "training":
        _watch(run, paces, told.step)


def say_whether_straggling(run: Draft) -> None:
    """Condition Straggling, once there is something to compare."""
    found = _found(run)
    if found:
        run.condition("Straggling", True, "SlowMembers", _in_words(run, found))
    elif len(_paces(run)) > 1 or find(run.status.conditions, "Straggling"):
        run.condition("Straggling", False, "KeepingUp", "no member is persistently slower than the others")


def replace_straggler(run: Draft) -> None:
    """Have the slowest member replaced if that is wanted and does no harm."""
    current = run.round
    if run.spec.recovery.straggler != "replace" or current is None or run.ending or not run.trains:
        return
    found = _movable(run)
    if found and not _leaves(run, current) and not _obstacle(run, current):
        slow = found[0]
        uid = next(member.uid for member in current.members if member.index == slow.member)
        run.set(replaced=ReplacedStatus(member=slow.member, node=slow.node, uid=uid, time=timestamp(run.now)))
        run.tell("StragglerReplaced", f"{_named(slow)} leaves at a step boundary and a new pod takes its place")
        avoid(run, slow.node, "Straggler")
    # Again if that failed, for as long as it is in the round.
    if (leaves := _leaves(run, current)) and not leaves.deleting:
        run.actions.append(DeletePod(leaves.name, leaves.uid, "it is persistently slower than its peers"))


def _leaves(run: Draft, current: Round) -> PodView | None:
    """The pod that was chosen, while it is in the round."""
    chosen = run.status.replaced
    return run.pods.get(chosen.uid) if chosen and current.rank_of(chosen.uid) is not None else None


def _watch(run: Draft, paces: Sequence[Pace], step: int) -> None:
    stored = run.status.round
    assert stored is not None
    pods = run.pods
    nodes = [pods[member.uid].node if member.uid in pods else "" for member in stored.members]
    seats = [
        stragglers.Seat(member.index, node)
        for member, node in zip(stored.members, nodes, strict=True)
        for _ in range(stored.procs_per_member)
    ]
    lags = stragglers.lags(paces)
    before = {each.member: each for each in _found(run)}
    run.set(stragglers=stragglers.watched(run.status.stragglers, lags, seats, step, run.now))
    after = {each.member: each for each in _found(run)}
    by_rank = {lag.rank: lag for lag in lags}
    for member in sorted(after.keys() - before.keys()):
        run.tell("StragglerFound", f"{_named(after[member])}: {by_rank[after[member].rank]}", warning=True)
    for member in sorted(before.keys() - after.keys()):
        run.tell("StragglerCleared", f"{_named(before[member])} keeps up with the others again")


def _paces(run: Draft) -> list[Pace]:
    """What the workers of the current round have told."""
    current = run.round
    agents = (run.observed.agents.get(member.uid) for member in current.members) if current else ()
    reports = (agent.report for agent in agents if agent and agent.report)
    return [
        pace
        for report in reports
        if current and report.round == current.number
        for pace in report.paces
        if 0 <= pace.rank < current.world_size
    ]


def _found(run: Draft) -> list[StragglerStatus]:
    return [each for each in run.status.stragglers if each.found]


def _movable(run: Draft) -> list[StragglerStatus]:
    """Those that a new pod might cure."""
    last = run.status.replaced
    return [each for each in _found(run) if not (last and last.node and last.node == each.node)]


def _obstacle(run: Draft, current: Round) -> str:
    """Why no member is replaced now; empty if one may be."""
    size, last = len(current.members), run.status.replaced
    left = seconds(last.time) + PAUSE - run.now if last else 0.0
    if left > 0:
        run.wake_in(left)
        return f"another was less than {PAUSE / 60:.0f} minutes ago"
    if size < run.wanted:
        return "others are missing already"
    if size <= run.spec.nodes.min:
        return "with nodes.min members the others could not go on meanwhile"
    if restorable(run) is None and not _saves(run):
        return "there is nothing yet that training could go on from"
    if _seconds_left(run) < WORTH:
        return "the job is about to end"
    return ""


def _saves(run: Draft) -> bool:
    known = run.status.checkpoint
    return run.checkpoint_step is not None and not (known and known.error)


def _seconds_left(run: Draft) -> float:
    told, paces = run.status.progress, _paces(run)
    return (told.max_steps - told.step) * paces[0].step if told and paces else 0.0


def _in_words(run: Draft, found: Sequence[StragglerStatus]) -> str:
    """Without figures: they are in the status, and would make another condition of it every second."""
    text = f"{', '.join(map(_named, found))}: persistently slower than the others, who wait"
    current = run.round
    if run.spec.recovery.straggler != "replace" or current is None or run.ending or _leaves(run, current):
        return text
    if not _movable(run):
        return f"{text}; not replaced: its predecessor was slow on this node too"
    why = _obstacle(run, current)
    return f"{text}; not replaced: {why}" if why else text


def _named(each: StragglerStatus) -> str:
    return f"member {each.member} (rank {each.rank}{f', node {each.node}' if each.node else ''})"
