"""How far a job is, with whom, and what its time went to. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal, get_args

from llmtrain_operator import progress
from llmtrain_operator.api import JobStatus
from llmtrain_operator.contract.wire import BEFORE_TRAINING
from llmtrain_operator.goodput import CAUSES, IDLE, goodput
from llmtrain_operator.metrics.series import Labelled, Series, Value, counter, counters, gauge, gauges

MOST_STRAGGLERS: Final = 8
"""As many as a status has."""

MemberState = Literal["training", "starting", "joining", "leaving", "spare"]
MEMBER_STATES: Final[tuple[MemberState, ...]] = get_args(MemberState)


def _progress(field: str) -> Value:
    return lambda status, _: getattr(status.progress, field) if status.progress else None


def members_by_state(status: JobStatus) -> dict[MemberState, int]:
    """The job's pods by what they are doing, as far as the status tells.

    `training`: in a round whose workers are past loading. `starting`: in a round whose workers load or restore.
    `leaving`: in a round, on a node that is about to go. `joining`: there, and in no round yet. `spare`: ready to take
    a member's place.
    """
    uids = {member.uid for member in status.round.members} if status.round else set()
    going = uids & {uid for node in status.leaving_nodes for uid in node.pods}
    staying = len(uids) - len(going)
    loads = status.progress is None or status.progress.phase in BEFORE_TRAINING
    return {
        "training": 0 if loads else staying,
        "starting": staying if loads else 0,
        "joining": max(0, status.replicas - len(uids)),
        "leaving": len(going),
        "spare": status.spares or 0,
    }


def _members(status: JobStatus) -> Iterator[tuple[str, float]]:
    yield from members_by_state(status).items()


def _stragglers(status: JobStatus) -> Iterator[tuple[str, float]]:
    found = [straggler for straggler in status.stragglers if straggler.found]
    return ((str(straggler.rank), straggler.factor) for straggler in found[:MOST_STRAGGLERS])


def _time(status: JobStatus) -> Iterator[tuple[str, float]]:
    return ((cause, status.ledger[cause]) for cause in CAUSES if cause in status.ledger)


def _accelerator_time(status: JobStatus) -> Iterator[tuple[str, float]]:
    booked = status.accelerator_ledger
    return ((cause, booked[cause]) for cause in (*CAUSES, IDLE) if cause in booked)


SERIES: Final[tuple[Series, ...]] = (
    gauge("step", "Optimizer steps done.", _progress("step")),
    gauge("max_steps", "Optimizer steps to do.", _progress("max_steps")),
    gauge("loss", "Mean training loss, nats per token.", _progress("loss")),
    gauge("validation_loss", "Newest mean validation loss, nats per token.", _progress("validation_loss")),
    gauge("gradient_norm", "Norm of the gradient before clipping.", _progress("gradient_norm")),
    gauge("learning_rate", "Learning rate of the newest step.", _progress("learning_rate")),
    gauge("tokens_per_second", "Tokens trained per second over all workers.", _progress("tokens_per_second")),
    gauge("mfu_ratio", "Share of the hardware's peak arithmetic that the model uses.", _progress("mfu")),
    gauge("step_seconds", "Time of the newest step.", _progress("step_seconds")),
    gauge("seconds_left", "Training time that is left at this pace.", lambda s, _: progress.seconds_left(s)),
    gauge("members", "Members of the current round.", lambda s, _: len(s.round.members) if s.round else 0),
    gauge("members_wanted", "Members that the job should have.", lambda s, _: s.target_nodes),
    gauge("spares", "Spares that are ready to take a member's place.", lambda s, _: s.spares),
    gauge(
        "goodput_ratio",
        "Productive share of the time since the start, suspension not counted.",
        lambda s, _: goodput(s.ledger),
    ),
    gauge("avoided_nodes", "Nodes that new pods are kept off.", lambda s, _: len(s.avoided_nodes)),
    counter("restarts_total", "Rounds that were lost.", lambda s, _: s.restarts),
)

LABELLED: Final[tuple[Labelled, ...]] = (
    gauges("members_by_state", "The job's pods by what they are doing.", "state", len(MEMBER_STATES), _members),
    gauges(
        "straggler_ratio",
        "Time of a persistently slow rank's own part of a step over that of its peers.",
        "rank",
        MOST_STRAGGLERS,
        _stragglers,
    ),
    counters("time_seconds_total", "Seconds since the start, by what they went to.", "cause", len(CAUSES), _time),
    counters(
        "accelerator_seconds_total",
        "The same in accelerator time: seconds times workers.",
        "cause",
        len(CAUSES) + 1,
        _accelerator_time,
    ),
)
