"""Conditions in the form of metav1.Condition: the transition time moves only when the status does.

Pure. Their types are a closed set; reasons are PascalCase words, messages whole sentences for people.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal

from llmtrain_operator.api import Condition

ConditionType = Literal[
    "Valid",
    "Scheduled",
    "Running",
    "Recovering",
    "Resizing",
    "Suspended",
    "Complete",
    "Failed",
    "Durable",
    "Protected",
    "Degraded",
    "Straggling",
    "Tracked",
    "ObjectivesMet",
    "PreflightPassed",
    "Fits",
    "Autoscaled",
]


MESSAGE_LIMIT = 4096
"""Characters of a message; the API server refuses a whole status for one that is longer than 32768."""


def timestamp(now: float) -> str:
    """`now` (seconds since 1970) as the API server writes times, to the millisecond."""
    return datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def seconds(text: str) -> float:
    """The inverse of `timestamp`."""
    return datetime.fromisoformat(text).timestamp()


def find(conditions: Sequence[Condition], kind: ConditionType) -> Condition | None:
    """The condition of this type, None if it was never set."""
    return next((condition for condition in conditions if condition.type == kind), None)


def is_true(conditions: Sequence[Condition], kind: ConditionType) -> bool:
    """Whether the condition is there and True."""
    found = find(conditions, kind)
    return found is not None and found.status == "True"


def short(message: str, limit: int = MESSAGE_LIMIT) -> str:
    """`message`, its end cut off if it is too long for a status."""
    return message if len(message) <= limit else f"{message[: limit - 3]}..."


def put(
    conditions: Sequence[Condition],
    kind: ConditionType,
    value: bool | None,
    reason: str,
    message: str,
    *,
    generation: int,
    now: float,
) -> tuple[Condition, ...]:
    """`conditions` with this one set (None: Unknown); an equal one keeps its place and its transition time."""
    old = find(conditions, kind)
    status: Literal["True", "False", "Unknown"] = "Unknown" if value is None else "True" if value else "False"
    # metav1.Condition times are whole seconds.
    when = old.last_transition_time if old and old.status == status else timestamp(now)[:19] + "Z"
    new = Condition(
        type=kind,
        status=status,
        reason=reason,
        message=short(message),
        observed_generation=generation,
        last_transition_time=when,
    )
    if old is None:
        return (*conditions, new)
    return tuple(new if condition.type == kind else condition for condition in conditions)
