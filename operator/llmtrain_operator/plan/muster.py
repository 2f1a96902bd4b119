"""Who could be in a round now, and what keeps the others.

Spares are mustered like members: whoever is ready is as good as any other. Only what a pod has in memory makes it
better, so those come first who have something, then those who were in the last round.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from llmtrain_operator import membership, podset
from llmtrain_operator.conditions import seconds
from llmtrain_operator.contract import names
from llmtrain_operator.contract.wire import Member
from llmtrain_operator.plan.avoid import avoided
from llmtrain_operator.plan.draft import Draft
from llmtrain_operator.plan.flash import keepers
from llmtrain_operator.state import AgentView, PodView

_NEW: Final = 2
"""Standing of a pod that was not in the last round and has nothing in memory; on a node to avoid it is worse."""


@dataclass(frozen=True, slots=True)
class Muster:
    """The pods that the job should have: the `ready` ones, those to be preferred first, and of each `missing` one what
    it is doing.

    `hopeless`: none of the missing ones can be scheduled. `returning`: how many of them will be ready within seconds.
    `reserved`: for how many of these, who have been in the last round, a place should be kept that a spare could have
    at once. `settled_for`: seconds since the newest of the ready ones came.
    """

    ready: tuple[Member, ...]
    missing: Mapping[int, str]
    hopeless: bool
    returning: int
    reserved: int
    settled_for: float


def muster(run: Draft) -> Muster:
    """Look at every index that is wanted. A member of the current round is ready if it could leave it for another."""
    agents, indexes = run.observed.agents, run.indexes
    live = podset.arrange(run.observed.pods, indexes, (), run.status.incarnations, given_up=run.given_up).live
    keeping = keepers(run)
    standings = {index: _standing(run, pod, keeping) for index, pod in live.items()}
    ready = sorted(ready_of(run, tuple(live.values())), key=lambda member: (standings[member.index], member.index))
    here = {member.index for member in ready}
    absent = {index: live.get(index) for index in indexes if index not in here}
    returning = {index for index, pod in absent.items() if _returning(run, pod)}
    proven = sum(standings[index] < _NEW for index in here)
    return Muster(
        tuple(ready),
        {index: _missing(run, index, pod) for index, pod in absent.items()},
        hopeless=bool(absent) and all(podset.hopeless(pod) for pod in absent.values()),
        returning=len(returning),
        reserved=max(0, min(sum(standings[index] < _NEW for index in returning), run.wanted - proven)),
        settled_for=min((agents[member.uid].connected_for for member in ready), default=0.0),
    )


def _standing(run: Draft, pod: PodView, keeping: Collection[str]) -> int:
    """The lower, the more is lost without this one: 0 if it has what is in memory, 1 if it was in the last round."""
    if pod.uid in keeping:
        return 0
    agent = _agent(run, pod)
    was_there = agent and agent.report and 0 < run.status.rounds == agent.report.round
    return 1 if was_there else _NEW + (pod.node in avoided(run))


def ready_of(run: Draft, pods: Sequence[PodView]) -> tuple[Member, ...]:
    """Which of these could be in the next round."""
    # Where a peer was lost all others hear of it from their own connections: who has not may be the one.
    last = run.status.last_failure
    peer_lost = run.status.state == "Recovering" and last is not None and last.reason == names.REASON_PEER_LOST
    left_only = run.status.round is None and peer_lost
    proven = [pod for pod in pods if pod.uid not in run.unproven]
    return membership.candidates(proven, run.observed.agents, run.status.rounds, left_only=left_only)


def _returning(run: Draft, pod: PodView | None) -> bool:
    is_measured = pod is not None and pod.uid in run.unproven
    return not is_measured and membership.returning(pod, _agent(run, pod))


def _agent(run: Draft, pod: PodView | None) -> AgentView | None:
    return run.observed.agents.get(pod.uid) if pod else None


def _missing(run: Draft, index: int, pod: PodView | None) -> str:
    last = run.status.last_failure
    if pod is None and last and held_back(run):
        return f"paused after its last pod ended: {last.reason}: {last.message or 'no message'}"
    agent = _agent(run, pod)
    if agent and agent.silent_for > membership.SILENCE_LIMIT:
        return f"its agent is silent ({agent.detail})"
    if pod and pod.uid in run.unproven:
        return run.unproven[pod.uid]
    if pod is None and (rejected := next((r for r in run.status.rejections if r.index == index), None)):
        return f"pre-flight: rejected {rejected.count} times, last {rejected.message}"
    if agent and agent.report and agent.report.leaving:
        return f"told to end ({agent.report.leaving})"
    return run.observed.refused.get(index) or podset.waiting_on(pod)


def held_back(run: Draft) -> bool:
    """Whether pods are not created now, because those before them ended too soon."""
    after = run.status.create_after
    left = seconds(after) - run.now if after else 0.0
    if left > 0:
        run.wake_in(left)
    return left > 0
