"""Who could be in a round now, and what keeps the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llmtrain_operator import membership, podset
from llmtrain_operator.conditions import seconds
from llmtrain_operator.contract import names
from llmtrain_operator.contract.wire import Member
from llmtrain_operator.plan.draft import Draft
from llmtrain_operator.state import AgentView, PodView


@dataclass(frozen=True, slots=True)
class Muster:
    """The wanted members: the `ready` ones in order of index, and of each `missing` one what it is doing.

    `hopeless`: none of the missing ones can be scheduled. `returning`: how many of them will be ready within seconds.
    `settled_for`: seconds since the newest of the ready ones came.
    """

    ready: tuple[Member, ...]
    missing: Mapping[int, str]
    hopeless: bool
    returning: int
    settled_for: float


def muster(run: Draft) -> Muster:
    """Look at every wanted index. A member of the current round is ready if it could leave it for another."""
    agents, indexes = run.observed.agents, run.indexes
    live = podset.arrange(run.observed.pods, indexes, (), run.status.incarnations, given_up=run.given_up).live
    ready = ready_of(run, tuple(live.values()))
    here = {member.index for member in ready}
    absent = {index: live.get(index) for index in indexes if index not in here}
    return Muster(
        ready,
        {index: _missing(run, index, pod) for index, pod in absent.items()},
        hopeless=bool(absent) and all(podset.hopeless(pod) for pod in absent.values()),
        returning=sum(membership.returning(pod, _agent(run, pod)) for pod in absent.values()),
        settled_for=min((agents[member.uid].connected_for for member in ready), default=0.0),
    )


def ready_of(run: Draft, pods: Sequence[PodView]) -> tuple[Member, ...]:
    """Which of these could be in the next round."""
    # Where a peer was lost all others hear of it from their own connections: who has not may be the one.
    last = run.status.last_failure
    peer_lost = run.status.state == "Recovering" and last is not None and last.reason == names.REASON_PEER_LOST
    left_only = run.status.round is None and peer_lost
    return membership.candidates(pods, run.observed.agents, run.status.rounds, left_only=left_only)


def _agent(run: Draft, pod: PodView | None) -> AgentView | None:
    return run.observed.agents.get(pod.uid) if pod else None


def _missing(run: Draft, index: int, pod: PodView | None) -> str:
    last = run.status.last_failure
    if pod is None and last and held_back(run):
        return f"paused after its last pod ended: {last.reason}: {last.message or 'no message'}"
    agent = _agent(run, pod)
    if agent and agent.silent_for > membership.SILENCE_LIMIT:
        return f"its agent is silent ({agent.detail})"
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
