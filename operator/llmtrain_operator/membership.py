"""Who is in the round: is the current one intact, and if not, who makes up the next and when.

Pure. A round that can go on from a checkpoint goes on at once with whoever is left, because the others can join it
later; one that would begin again at step 0 waits for them, because later they could not.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from llmtrain_operator import failure, podset
from llmtrain_operator.contract.wire import Member, Round
from llmtrain_operator.state import AgentView, PodView

PATIENCE = 60.0
"""Seconds that a start with fewer than the wanted members is put off while the missing ones may still come."""
HOPELESS_PATIENCE = 10.0
"""The same when none of the missing ones can be scheduled."""
REJOIN_PATIENCE = 5.0
"""The same when the members can be added later, but some of the missing ones are about to be ready."""
MOST_NAMED = 5
"""Members, and reasons, that are named one by one where many are missing."""
SILENCE_LIMIT = 2.5
"""Seconds without a connection after which a member is lost, counted only while the coordinator itself is there. By
then it has missed the coordinator's heartbeat deadline, or had time to dial again several times."""
MISSED_LIMIT = 0.6
"""The same where another member's workers have already failed for want of a peer: time to dial again once or twice."""
GIVEN_UP = 10.0
"""The same after which its pod is replaced. Longer, because one that comes back sooner has nothing to start anew."""
NEVER_CAME = 120.0
"""The same for an agent that was never heard of although its pod runs; it may be slow to start."""


@dataclass(frozen=True, slots=True)
class Loss:
    """A member that is no longer part of its round, and how that is known."""

    member: Member
    detail: str
    failed: bool  # True: its agent lives and reports failed workers; False: pod, node or agent are gone
    own_end: bool = False  # it used more memory than it may: a fault of the job's own, not of the infrastructure
    node_fault: bool = False  # it fell silent or broke, as on a node that fails; nobody took it away


@dataclass(frozen=True, slots=True)
class Formation:
    """The next round's members, or None with the reason to wait and when to look again (seconds from now)."""

    members: tuple[Member, ...] | None
    reason: str
    look_again: float | None = None


def losses(
    current: Round, pods: Mapping[str, PodView], agents: Mapping[str, AgentView], done: Collection[str] = ()
) -> tuple[Loss, ...]:
    """Every member of `current` that has left it. Empty while the round is intact. `pods` and `agents` by pod UID.

    `done`: UIDs of members that have succeeded; what becomes of them afterwards does not matter.
    """
    limit = silence_limit(current, agents)
    members = (member for member in current.members if member.uid not in done)
    found = (_loss(member, current.number, pods.get(member.uid), agents.get(member.uid), limit) for member in members)
    return tuple(loss for loss in found if loss)


def silence_limit(current: Round, agents: Mapping[str, AgentView]) -> float:
    """Seconds without a connection after which a member of `current` is lost."""
    there = (agents.get(member.uid) for member in current.members)
    failures = (agent.report.failure for agent in there if agent and agent.report)
    peers_lost = any(f and f.round == current.number and failure.is_secondary(f) for f in failures)
    return MISSED_LIMIT if peers_lost else SILENCE_LIMIT


def _loss(
    member: Member, number: int, pod: PodView | None, agent: AgentView | None, silence_limit: float
) -> Loss | None:
    if pod is None:
        return Loss(member, f"pod {member.pod} is gone", failed=False)
    if pod.deleting:
        return Loss(member, f"pod {member.pod} is being deleted", failed=False)
    if pod.phase == "Failed" and pod.reason == "OOMKilled":
        # No pod's name in it: the same end of the next incarnation is to be known as the same.
        text = "the pod used more memory than its limit (OOMKilled); resources in spec.template set that"
        return Loss(member, text, failed=False, own_end=True)
    if pod.phase == "Failed":
        text = f"pod {member.pod} failed: {pod.reason or pod.message or 'no reason given'}"
        return Loss(member, text, failed=False, node_fault=pod.reason not in podset.TAKEN_AWAY)
    if agent is None:
        return None
    if agent.missed or agent.silent_for > silence_limit:
        text = f"no word from {member.pod} for {agent.silent_for:.0f} s ({agent.detail})"
        return Loss(member, text, failed=False, node_fault=True)
    report = agent.report
    if report and report.leaving and report.failure is None:
        return Loss(member, f"pod {member.pod} was told to end ({report.leaving})", failed=False)
    if report and report.round >= number and report.state in ("failed", "joining", "stopped"):
        return Loss(member, f"workers of {member.pod} ended", failed=report.failure is not None)
    return None


def left(current: Round, agents: Mapping[str, AgentView], *, anyhow: bool = False) -> frozenset[str]:
    """UIDs of the members whose workers have ended as they were asked to: they are joining again, or their agents stop
    too because their pods are being deleted, without a failure.

    `anyhow`: a failure counts as well, because a script that is told to end may do so in any way.
    """
    return frozenset(m.uid for m in current.members if _left(current.number, agents.get(m.uid), anyhow))


def _left(number: int, agent: AgentView | None, anyhow: bool) -> bool:
    report = agent.report if agent else None
    if report is None or report.round != number or report.state not in ("joining", "stopped", "failed"):
        return False
    failed = report.failure is not None and report.failure.round == number
    return anyhow or (report.state != "failed" and not failed)


def drained(current: Round, pods: Mapping[str, PodView], agents: Mapping[str, AgentView]) -> frozenset[str]:
    """UIDs of the members that are to end while their workers still run, because their pods are being deleted or their
    agents were told so: within the pod's grace period they can save and leave like any others."""
    return frozenset(m.uid for m in current.members if _drained(current.number, pods.get(m.uid), agents.get(m.uid)))


def _drained(number: int, pod: PodView | None, agent: AgentView | None) -> bool:
    if pod is None or agent is None or agent.report is None or not agent.connected:
        return False
    ends = pod.deleting or agent.report.leaving
    return bool(ends) and agent.report.state == "running" and agent.report.round == number


def told_to_end(current: Round, agents: Mapping[str, AgentView]) -> frozenset[str]:
    """UIDs of the members that say that they were told to end by someone else than the operator, not yet being done;
    none if workers of the round have failed, because that is what ended it then."""
    told = {m.uid: agent.report for m in current.members if (agent := agents.get(m.uid)) and agent.report}
    here = {uid: report for uid, report in told.items() if report.round == current.number}
    if any(report.failure and report.failure.round == current.number for report in here.values()):
        return frozenset()
    return frozenset(uid for uid, report in here.items() if report.leaving and report.state != "succeeded")


def succeeded(current: Round, pods: Mapping[str, PodView], agents: Mapping[str, AgentView]) -> frozenset[str]:
    """UIDs of the members that finished this very round without an error, as far as can be seen now."""
    return frozenset(
        m.uid for m in current.members if _succeeded(m, current.number, pods.get(m.uid), agents.get(m.uid))
    )


def _succeeded(member: Member, number: int, pod: PodView | None, agent: AgentView | None) -> bool:
    if pod is not None and pod.phase == "Succeeded":
        return True
    report = agent.report if agent else None
    return report is not None and report.uid == member.uid and report.round == number and report.state == "succeeded"


def unheard(agents: Mapping[str, AgentView]) -> frozenset[str]:
    """UIDs of pods whose agents have been silent for so long that others take their place: on dead nodes, most likely,
    or stuck."""
    return frozenset(uid for uid, a in agents.items() if a.silent_for > (GIVEN_UP if a.report else NEVER_CAME))


def next_judgement(agents: Mapping[str, AgentView]) -> float | None:
    """Seconds until the silence of one of them has the next consequence, None if all are there."""
    all_limits = MISSED_LIMIT, SILENCE_LIMIT, GIVEN_UP, NEVER_CAME
    limits = [(a.silent_for, limit) for a in agents.values() for limit in all_limits]
    return min((limit - silent for silent, limit in limits if 0 < silent <= limit), default=None)


def candidates(
    pods: Sequence[PodView], agents: Mapping[str, AgentView], number: int, *, left_only: bool = False
) -> tuple[Member, ...]:
    """Members that could be in a round after `number`, by index: live pods whose agents are connected and offer an
    unused store. An agent that offers none while it runs is first told to wait; it joins and offers one then.

    `left_only`: only those that have left the last round, because one that has not may be the cause of its end, dead
    and not yet missed.
    """
    states = ("joining",) if left_only else ("joining", "running")
    ready = []
    for pod in pods:
        agent = agents.get(pod.uid)
        report = agent.report if agent and agent.connected else None
        if report is None or report.leaving or not pod.usable:
            continue
        if report.state in states and report.store_port and report.round <= number:
            where = report.host, report.store_port, report.flash_port
            ready.append(Member(pod.index, pod.incarnation, pod.name, pod.uid, *where))
    return tuple(sorted(ready, key=lambda member: member.index))


def returning(pod: PodView | None, agent: AgentView | None) -> bool:
    """Whether the member of this pod, not ready now, is likely to be so within a second or two: its container runs, and
    its agent is there with all of its imports done, or those who are there are not known yet."""
    if pod is None or pod.deleting or pod.phase != "Running":
        return False
    if agent is None:
        return True
    report = agent.report
    if report is None or report.state == "stopped" or report.leaving:
        return False
    return agent.connected and bool(report.store_port)


def form(
    ready: Sequence[Member], wanted: int, minimum: int, missing: Mapping[int, str], waited: float, patience: float
) -> Formation:
    """The members of the next round, or why not yet.

    `ready`: those to be preferred first. `missing`: for each wanted index without a ready member, what it is doing.
    `waited`: seconds that they have been waited for, of `patience` at most.
    """
    chosen = tuple(sorted(ready[:wanted], key=lambda member: member.index))
    if len(chosen) == wanted:
        return Formation(chosen, f"all {wanted} members are ready")
    absent = together(missing)
    if len(chosen) < minimum:
        return Formation(None, f"{len(chosen)} of at least {minimum} members are ready ({absent})")
    if waited < patience:
        look_again = patience - waited
        return Formation(None, f"{len(chosen)} of {wanted} members are ready ({absent})", look_again)
    return Formation(chosen, f"{len(chosen)} of {wanted} members are ready after {waited:.0f} s ({absent})")


def together(missing: Mapping[int, str]) -> str:
    """What the missing ones are doing, each thing once: hundreds may be missing for the same long-winded reason."""
    by_reason: dict[str, list[int]] = {}
    for index, what in sorted(missing.items()):
        by_reason.setdefault(what, []).append(index)
    texts = [f"{_members(indexes)}: {what}" for what, indexes in by_reason.items()]
    more = [f"{len(texts) - MOST_NAMED} more reasons"] if len(texts) > MOST_NAMED else []
    return "; ".join(texts[:MOST_NAMED] + more)


def _members(indexes: Sequence[int]) -> str:
    named = ", ".join(map(str, indexes[:MOST_NAMED]))
    more = f" and {len(indexes) - MOST_NAMED} more" if len(indexes) > MOST_NAMED else ""
    return f"member{'s' if len(indexes) > 1 else ''} {named}{more}"
