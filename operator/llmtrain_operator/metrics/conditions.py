"""A job's conditions as numbers. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, get_args

from llmtrain_operator.api import JobStatus
from llmtrain_operator.conditions import ConditionType
from llmtrain_operator.metrics.series import Labelled, gauges

TYPES: Final = frozenset(get_args(ConditionType))
_VALUES: Final = {"True": 1.0, "False": 0.0}


def _conditions(status: JobStatus) -> Iterator[tuple[str, float]]:
    for condition in status.conditions:
        if condition.type in TYPES and condition.status in _VALUES:
            yield condition.type, _VALUES[condition.status]


LABELLED: Final[tuple[Labelled, ...]] = (
    gauges(
        "condition", "1 if the condition is True, 0 if it is False; none if unknown.", "type", len(TYPES), _conditions
    ),
)
