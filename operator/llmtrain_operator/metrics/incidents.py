"""How often a job's rounds were lost, why, and what getting over it took. Pure.

What a job may go through again and again is shown from the beginning, as 0: of a counter that begins with 1 Prometheus
sees no increase.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from llmtrain_operator.api import JobStatus
from llmtrain_operator.contract import names
from llmtrain_operator.incidents import OTHER
from llmtrain_operator.metrics.series import Labelled, Series, counter, counters, gauges

PHASES: Final = ("detect", "round", "train")
REASONS: Final = (*sorted(names.REASONS), OTHER)
COMMON: Final = (
    names.REASON_KILLED,
    names.REASON_HANG,
    names.REASON_POD_LOST,
    names.REASON_PEER_LOST,
    names.REASON_USER_ERROR,
    names.REASON_NON_FINITE_LOSS,
    names.REASON_LOSS_SPIKE,
)


def _counts(status: JobStatus) -> Iterator[tuple[str, float]]:
    counts = dict.fromkeys(COMMON, 0) | status.incident_counts
    return ((reason, counts[reason]) for reason in REASONS if reason in counts)


def _recovery(status: JobStatus) -> Iterator[tuple[str, float]]:
    """Of the newest incident that training got over: parts that add up to the time without training."""
    over = [incident for incident in status.incidents if incident.outcome == "Recovered"]
    if not over or over[-1].train_seconds is None:
        return
    newest, whole = over[-1], over[-1].train_seconds
    noticed = min(newest.detect_seconds, whole)
    formed = noticed if newest.round_seconds is None else min(max(noticed, newest.round_seconds), whole)
    yield from zip(PHASES, (noticed, formed - noticed, whole - formed), strict=True)


SERIES: Final[tuple[Series, ...]] = (
    counter("lost_steps_total", "Committed steps that had to be done again.", lambda s, _: s.lost_steps_total),
)

LABELLED: Final[tuple[Labelled, ...]] = (
    counters(
        "incidents_total",
        "Incidents that are over, by what began them.",
        "reason",
        len(REASONS),
        _counts,
    ),
    gauges(
        "recovery_seconds",
        "The newest incident: until it was noticed, from there to the next round, from there to the next step.",
        "phase",
        len(PHASES),
        _recovery,
    ),
)
