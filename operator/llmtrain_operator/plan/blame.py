"""Why a round was lost: which member, and which of several last words explains the others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from llmtrain_operator import failure, membership
from llmtrain_operator.contract import names
from llmtrain_operator.contract.wire import Failure, Member, Round
from llmtrain_operator.plan.draft import Draft


@dataclass(frozen=True, slots=True)
class Blame:
    """What ended the round, and the member that it happened on."""

    cause: Failure
    member: Member

    def __str__(self) -> str:
        where = f"member {self.member.index} (rank {self.cause.rank}) at step {self.cause.step}"
        return f"{where}: {self.cause.reason}: {self.cause.message}"


def settling(run: Draft, current: Round, lost: tuple[membership.Loss, ...]) -> bool:
    """Whether judging has to wait a moment: all known failures look like consequences, and their cause may still be
    on its way, since a worker that fails first is not always reported first, and a node that dies only falls silent."""
    if len(lost) == len(current.members) or not all(loss.failed for loss in lost):
        return False
    agents = [run.observed.agents[loss.member.uid] for loss in lost]
    if not all(
        agent.report and agent.report.failure and failure.is_secondary(agent.report.failure) for agent in agents
    ):
        return False
    there = (run.observed.agents.get(member.uid) for member in current.members)
    limit = membership.silence_limit(current, run.observed.agents)
    silences = [limit - agent.silent_for for agent in there if agent and agent.silent_for > 0]
    left = max([failure.SETTLING - max(agent.failed_for for agent in agents), *silences])
    if left > 0:
        run.wake_in(left)
    return left > 0


def blame(run: Draft, current: Round, lost: tuple[membership.Loss, ...]) -> Blame:
    """The cause of the loss of `current`, of which `lost` are gone. A member that is simply not there any more explains
    the broken connections of the others."""
    first = min(lost, key=lambda loss: (not loss.own_end, loss.failed))
    silent = any(not loss.failed for loss in lost)
    reported = {f: member for f, member in _failures(run, current) if not (silent and failure.is_secondary(f))}
    cause = failure.root_cause(reported) or _gone(run, current, first)
    return Blame(cause, reported.get(cause, first.member))


def _gone(run: Draft, current: Round, loss: membership.Loss) -> Failure:
    kind = names.REASON_KILLED if loss.own_end else names.REASON_POD_LOST
    rank = current.members.index(loss.member) * current.procs_per_member
    return Failure(kind, loss.detail, current.number, rank, run.step)


def _failures(run: Draft, current: Round) -> Iterator[tuple[Failure, Member]]:
    """What members of this very round say of their workers' ends."""
    for member in current.members:
        agent = run.observed.agents.get(member.uid)
        if agent and agent.report and agent.report.failure and agent.report.failure.round == current.number:
            yield agent.report.failure, member
