"""The life of a round: watched while it runs, judged when it is lost, formed anew when enough members are ready."""

from __future__ import annotations

from collections.abc import Iterator

from llmtrain_operator import failure, membership, podset
from llmtrain_operator.api import FailureStatus, JobStatus, MemberStatus, RoundStatus
from llmtrain_operator.conditions import seconds, short, timestamp
from llmtrain_operator.contract import names
from llmtrain_operator.contract.wire import Failure, Member, Round
from llmtrain_operator.plan.draft import Draft
from llmtrain_operator.plan.ends import finish
from llmtrain_operator.state import PodView


def watch_silence(run: Draft) -> None:
    """Nothing happens when a silent member's time is up, so the pass that judges it has to be asked for."""
    for agent in run.observed.agents.values():
        if 0 < agent.silent_for <= membership.SILENCE_LIMIT:
            run.wake_in(membership.SILENCE_LIMIT - agent.silent_for + 0.1)


def settling(run: Draft, current: Round, lost: tuple[membership.Loss, ...]) -> bool:
    """Whether judging has to wait a moment: all known failures look like consequences, and their cause may still be
    on its way, since a worker that fails first is not always reported first."""
    if len(lost) == len(current.members) or not all(loss.failed for loss in lost):
        return False
    agents = [run.observed.agents[loss.member.uid] for loss in lost]
    if not all(
        agent.report and agent.report.failure and failure.is_secondary(agent.report.failure) for agent in agents
    ):
        return False
    left = failure.SETTLING - max(agent.failed_for for agent in agents)
    if left > 0:
        run.wake_in(left)
    return left > 0


def lose_round(run: Draft, current: Round, lost: tuple[membership.Loss, ...]) -> None:
    """End `current` and judge what happened, which may end the job too."""
    first = min(lost, key=lambda loss: not loss.own_end)
    rank = current.members.index(first.member) * current.procs_per_member
    step = run.status.progress.step if run.status.progress else 0
    kind = names.REASON_KILLED if first.own_end else names.REASON_POD_LOST
    gone = Failure(kind, first.detail, current.number, rank, step)
    silent = any(not loss.failed for loss in lost)
    reported = {f: member for f, member in _failures(run, current) if not (silent and failure.is_secondary(f))}
    cause = failure.root_cause(reported) or gone
    history_restarts = run.status.restarts
    history = failure.History(run.status.failures_counted, run.status.streak, _last(run.status))
    verdict = failure.judge(
        cause, history, run.spec.recovery.max_restarts, knows_steps=run.spec.entrypoint is None or step > 0
    )
    member = reported.get(cause, first.member)
    run.set(
        state="Recovering",
        round=None,
        progress=None,
        best_step=max(run.status.best_step, step),
        restarts=run.status.restarts + 1,
        failures_counted=run.status.failures_counted + verdict.counts,
        streak=verdict.streak,
        waiting_since=timestamp(run.now),
        not_before=timestamp(run.now + verdict.pause) if verdict.pause else None,
        last_failure=FailureStatus(
            reason=cause.reason,
            message=short(cause.message),
            traceback=cause.traceback[-4000:],
            member=member.index,
            rank=cause.rank,
            step=cause.step,
            exit_code=cause.exit_code,
            signal=cause.signal,
            time=timestamp(run.now),
        ),
    )
    said = f"member {member.index} (rank {cause.rank}) at step {cause.step}: {cause.reason}: {cause.message}"
    if verdict.fatal:
        run.set(restarts=history_restarts)
        finish(run, "Failed", verdict.reason, verdict.message)
        return
    run.condition("Running", False, "RoundLost", said)
    run.condition("Recovering", True, "RoundLost", said)
    run.tell("MemberLost" if cause.reason == names.REASON_POD_LOST else "WorkerFailed", said, warning=True)


def _failures(run: Draft, current: Round) -> Iterator[tuple[Failure, Member]]:
    """What members of this very round say of their workers' ends."""
    for member in current.members:
        agent = run.observed.agents.get(member.uid)
        if agent and agent.report and agent.report.failure and agent.report.failure.round == current.number:
            yield agent.report.failure, member


def _last(status: JobStatus) -> Failure | None:
    last = status.last_failure
    return None if last is None else Failure(last.reason, last.message, 0, last.rank, last.step)


def await_round(run: Draft) -> None:
    """Form the next round if enough members are ready, else say what is missing."""
    if run.status.waiting_since is None:
        run.set(waiting_since=timestamp(run.now))
    assert run.status.waiting_since is not None
    if run.status.not_before and (left := seconds(run.status.not_before) - run.now) > 0:
        # The moment, not the time left: that would be another status with every pass.
        run.condition("Running", False, "BackingOff", f"repeated failures; pausing until {run.status.not_before}")
        run.wake_in(left)
        return
    wanted = run.wanted
    live = podset.arrange(run.observed.pods, wanted, (), run.status.incarnations).live
    ready = membership.candidates(tuple(live.values()), run.observed.agents, run.status.rounds)
    absent = {i: live.get(i) for i in range(wanted) if all(member.index != i for member in ready)}
    formation = membership.form(
        ready,
        wanted,
        run.spec.nodes.min,
        run.now - seconds(run.status.waiting_since),
        {index: _missing(run, index, pod) for index, pod in absent.items()},
        hopeless=bool(absent) and all(podset.hopeless(pod) for pod in absent.values()),
    )
    if formation.look_again is not None:
        run.wake_in(formation.look_again)
    if formation.members is None:
        run.condition("Running", False, "WaitingForMembers", formation.reason)
        return
    number = run.status.rounds + 1
    members = tuple(
        MemberStatus(
            index=m.index, incarnation=m.incarnation, pod=m.pod, uid=m.uid, host=m.host, store_port=m.store_port
        )
        for m in formation.members
    )
    run.set(
        rounds=number,
        round=RoundStatus(
            number=number,
            procs_per_member=run.spec.nodes.proc_per_node,
            members=members,
            started_at=timestamp(run.now),
            reason=short(formation.reason),
        ),
        waiting_since=None,
        not_before=None,
        pod_failures=0,
        create_after=None,
    )
    run.tell("RoundStarted", f"round {number} with {len(members)} members: {formation.reason}")


def _missing(run: Draft, index: int, pod: PodView | None) -> str:
    last = run.status.last_failure
    if pod is None and last and held_back(run):
        return f"paused after its last pod ended: {last.reason}: {last.message or 'no message'}"
    return run.observed.refused.get(index) or podset.waiting_on(pod)


def held_back(run: Draft) -> bool:
    """Whether pods are not created now, because those before them ended too soon."""
    after = run.status.create_after
    left = seconds(after) - run.now if after else 0.0
    if left > 0:
        run.wake_in(left)
    return left > 0
