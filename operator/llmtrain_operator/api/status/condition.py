"""A condition of a job, as Kubernetes has them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llmtrain_operator.api.record import StatusRecord
from llmtrain_operator.api.status.times import Time


class Condition(StatusRecord):
    """A metav1.Condition."""

    type: Annotated[str, Field(max_length=316)]
    """What it is about: Valid, Scheduled, Running, Recovering, Resizing, Suspended, Complete, Failed, Durable,
    Protected, Degraded, Straggling, Tracked, ObjectivesMet, PreflightPassed, Fits, Autoscaled."""
    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""
    reason: Annotated[str, Field(max_length=1024)]
    """Why, as one PascalCase word."""
    message: Annotated[str, Field(max_length=32768)] = ""
    """Why, as a sentence."""
    last_transition_time: Time
    """When status changed last."""
    observed_generation: int | None = None
    """Generation of the job that it was judged by."""
