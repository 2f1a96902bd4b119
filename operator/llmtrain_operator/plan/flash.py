"""What the members say of snapshots in memory, as status; and what the job could go on from with the members left."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from llmtrain_operator import progress
from llmtrain_operator.api import FlashStatus, HolderStatus, RoundStatus
from llmtrain_operator.conditions import short
from llmtrain_operator.contract.wire import BEFORE_TRAINING, Flash, Member, Progress
from llmtrain_operator.plan.draft import Draft

LAG = 20
"""Snapshots that the committed step may be behind before the job counts as degraded."""


def note_flash(run: Draft) -> None:
    """Take in what the current round's members say."""
    told = next((p for p in progress.said(run.status, run.observed.agents) if p.flash), None)
    if told is None or told.flash is None or run.status.round is None:
        return
    old = run.status.flash or FlashStatus()
    run.set(flash=_newer(old, told, told.flash, _holders(run, run.status.round, told.flash.copies)))
    _say_whether_degraded(run, told)


def restorable(run: Draft) -> int | None:
    """The step that the members which are left can restore together, None if there is none."""
    flash = run.status.flash
    if flash is None or flash.committed_step is None or not flash.holders:
        return None
    return flash.committed_step if covered(flash, living(run)) else None


def give_up(run: Draft, beyond: int) -> None:
    """Steps beyond that one are not gone on from any more, so that nobody need be waited for who has them."""
    flash = run.status.flash
    if flash and flash.committed_step is not None and flash.committed_step > beyond:
        run.set(flash=flash.model_copy(update={"committed_step": None, "copies": 0, "holders": ()}))


def last_gasp(run: Draft) -> str:
    """The UID of the pod that is to persist what is in memory, before all pods end; empty if nothing is to be.

    That is when the workers could not do it themselves: they are dead, and memory has steps that storage has not.
    """
    step = restorable(run)
    if run.status.state == "Complete" or run.status.round is not None or run.spec.entrypoint or not run.durable:
        return ""
    if step is None or step <= (run.checkpoint_step if run.checkpoint_step is not None else -1):
        return ""
    keeping = keepers(run)
    members = [pod for pod in run.observed.pods if pod.uid in keeping]
    return min(members, key=lambda pod: pod.index).uid if members else ""


def keepers(run: Draft) -> frozenset[str]:
    """UIDs of the living that were in the round whose snapshots are committed: they, and no others, have any."""
    flash = run.status.flash
    return living(run) & {holder.uid for holder in flash.holders} if flash else frozenset()


def with_memory(run: Draft, chosen: tuple[Member, ...], ready: Sequence[Member]) -> tuple[Member, ...] | None:
    """`chosen`, and as many more of the keepers that are `ready` as it takes to restore what is in memory, if that is
    newer than what is in storage; None if those are not ready yet that it takes."""
    flash, step = run.status.flash, restorable(run)
    known = run.checkpoint_step
    if flash is None or step is None or (known is not None and known >= step):
        return chosen
    members = {member.index: member for member in chosen}
    for member in ready:
        if covered(flash, {each.uid for each in members.values()}):
            break
        members[member.index] = member  # perhaps in place of its own replacement: an index is in a round once
    uids = {member.uid for member in members.values()}
    return tuple(members[index] for index in sorted(members)) if covered(flash, uids) else None


def covered(flash: FlashStatus, living: Collection[str]) -> bool:
    """Whether every member's snapshot lies in the memory of one of the living, its own or another's."""
    return all(holder.uid in living or any(buddy in living for buddy in holder.buddies) for holder in flash.holders)


def living(run: Draft) -> frozenset[str]:
    """UIDs of the pods whose memory is there and will be for a while."""
    pods, agents = run.pods, run.observed.agents
    return frozenset(
        uid
        for uid, agent in agents.items()
        if agent.connected and uid in pods and not pods[uid].deleting and pods[uid].phase == "Running"
        if not (agent.report and agent.report.leaving)
    )


def _holders(run: Draft, stored: RoundStatus, copies: int) -> tuple[HolderStatus, ...]:
    """Where each member's snapshots lie, by its own account (a buddy that has no room is passed over) or else, until it
    has told of any, as was planned."""
    uids = [member.uid for member in stored.members]
    holders = []
    for member in stored.members:
        agent = run.observed.agents.get(member.uid)
        said = agent.report.progress if agent and agent.report else None
        own = said.flash if said and said.round == stored.number else None
        ranks = member.buddies[:copies] if own is None or own.committed is None else own.kept_by
        holders.append(HolderStatus(uid=member.uid, buddies=tuple(uids[rank] for rank in ranks if rank < len(uids))))
    return tuple(holders)


def _newer(old: FlashStatus, told: Progress, said: Flash, now_held: tuple[HolderStatus, ...]) -> FlashStatus:
    holders, committed, copies = old.holders, old.committed_step, old.copies
    if said.committed is not None:
        committed, copies, holders = said.committed, said.copies, now_held
    elif said.kept is None and told.phase not in BEFORE_TRAINING:
        holders, committed, copies = (), None, 0  # of the rounds before nothing is left
    return FlashStatus(
        step=said.step,
        committed_step=committed,
        copies=copies,
        stall_seconds=None if said.stall_seconds is None else round(said.stall_seconds, 4),
        size=said.size,
        every=said.every,
        reason=short(said.reason),
        put_off=said.put_off,
        trouble=short(said.trouble),
        round=told.round,
        holders=holders,
    )


def _say_whether_degraded(run: Draft, told: Progress) -> None:
    flash = run.status.flash
    if flash is None:
        return
    restored = told.checkpoints.restored_step if told.checkpoints else None
    began = restored if flash.committed_step is None else flash.committed_step
    behind = (flash.step or 0) - (began or 0)
    if flash.trouble:
        run.condition("Degraded", True, "NoSnapshots", flash.trouble)
    elif flash.step is not None and behind > LAG * (flash.every or 1):
        text = f"the step that members can restore together is over {LAG} snapshots behind: copies do not keep up"
        run.condition("Degraded", True, "ReplicaLagging", text)
    else:
        run.condition("Degraded", False, "AsExpected", "snapshots are taken and copied")
