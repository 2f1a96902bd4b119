"""What is done about failures, and what that should achieve. Of `spec`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llmtrain_operator.api.record import Record
from llmtrain_operator.api.types import CountOrZero, Duration


class Objectives(Record):
    """What recovery should achieve: each incident is measured against it, and the condition ObjectivesMet says how."""

    process: Duration | None = None
    """Most time from a worker's failure to the next step, such as 2s."""
    node: Duration | None = None
    """Most time from the loss of a pod, a node or its network to the next step, such as 5s."""
    lost_steps: CountOrZero | None = None
    """Committed steps that may be lost, such as 0."""


class Preflight(Record):
    """A quick check of each new member's node (matmul, memory bandwidth, network, disk) before it may join: a node that
    is slower than its peers' is rejected."""

    enabled: bool = False
    """Whether nodes are checked. Default false."""
    tolerance: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """A node is rejected if a figure is below this share of its peers' median, twice in a row. Default 0.5."""
    seconds: Annotated[int, Field(ge=5, le=300)] = 10
    """Most time that the measurements may take. Default 10."""


class Recovery(Record):
    """What is done about failures."""

    max_restarts: Annotated[int, Field(ge=0, le=100_000)] = 10
    """Restarts after failing workers until the job fails; lost nodes and pods do not count. Default 10."""
    avoid_nodes: bool = True
    """Keep new pods off nodes that fail the job again and again, for an hour and more. Default true."""
    objectives: Objectives | None = None
    """What recovery should achieve."""
    preflight: Preflight = Preflight()
    """Whether a new member's node is checked before it may join."""
    numerics: Literal["fail", "rollback", "rollbackAndSkip"] = "rollback"
    """When the loss is no number, or rises far out of line and stays there: fail, go back to the last good state, or do
    that and leave out the samples that it came with. Of the reference trainer only. Default rollback."""
    straggler: Literal["report", "replace"] = "report"
    """What is done about a rank that is persistently slower than its peers: report it, or also replace its member's pod
    while the others go on, of which there must be nodes.min. Default report."""
