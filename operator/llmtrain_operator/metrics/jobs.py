"""All jobs' series, in Prometheus' text format: the tables applied to the newest statuses when Prometheus asks. Pure.

Nothing is kept between two scrapes, so a job that is forgotten leaves no series behind. Labels come from closed sets
plus namespace, job name and the rank of a straggler; never a pod, a UID or a step. None of these needs escaping, which
is most of what the client library's own writer is busy with: a thousand jobs take a tenth of its time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Final, get_args

from llmtrain_operator.api import JobStatus, State
from llmtrain_operator.metrics import conditions, incidents, safety, training
from llmtrain_operator.metrics.series import Kind

STATES: Final = get_args(State)
SERIES: Final = (*training.SERIES, *safety.SERIES, *incidents.SERIES)
LABELLED: Final = (*training.LABELLED, *safety.LABELLED, *incidents.LABELLED, *conditions.LABELLED)
SERIES_PER_JOB: Final = len(SERIES) + sum(each.most for each in LABELLED)
"""A job has no more, whatever happens to it."""

Jobs = Sequence[tuple[tuple[str, str], JobStatus]]
"""Namespace and name, and the newest status."""


def text(jobs: Jobs, now: float) -> Iterator[str]:
    """The lines, each with its end. `now`: seconds since 1970."""
    yield _head("llmtrain_jobs", "Jobs by state.", "gauge")
    states = Counter(status.state for _, status in jobs)
    yield from (f'llmtrain_jobs{{state="{state}"}} {states[state]}\n' for state in STATES)
    labels = [(f'namespace="{namespace}",job="{job}"', status) for (namespace, job), status in jobs]
    for series in SERIES:
        name = f"llmtrain_job_{series.name}"
        yield _head(name, series.help, series.kind)
        for job, status in labels:
            number = series.value(status, now)
            if number is not None:
                yield f"{name}{{{job}}} {number}\n"
    for labelled in LABELLED:
        name = f"llmtrain_job_{labelled.name}"
        yield _head(name, labelled.help, labelled.kind)
        for job, status in labels:
            for value, number in islice(labelled.values(status), labelled.most):
                yield f'{name}{{{job},{labelled.label}="{value}"}} {number}\n'


def _head(name: str, help_text: str, kind: Kind) -> str:
    return f"# HELP {name} {help_text}\n# TYPE {name} {kind}\n"
