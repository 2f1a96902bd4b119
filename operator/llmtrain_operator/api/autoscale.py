"""`spec.autoscale`: whether the operator itself chooses how many members train, and what it must keep to."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from llmtrain_operator.api.record import Record
from llmtrain_operator.api.types import Duration, Fraction


class Autoscale(Record):
    """The operator chooses the number of members between nodes.min and nodes.desired, by what the job's own steps have
    shown: more where nodes are free and the time saved repays the pause, fewer where members add too little, or where
    jobs of higher priority need their nodes. The choice is in status.targetNodes; the spec is left alone."""

    enabled: bool = False
    """Whether it does. If not, nodes.desired is the number of members. Default false."""
    min_efficiency: Fraction = 0.05
    """Least that a further member must add to the job's speed, as a share of what each of the first nodes.min
    members gives. Members that add less are given back. Default 0.05; 0: only speed counts."""
    max_pause_share: Annotated[float, Field(gt=0, le=0.5)] = 0.05
    """Most of the job's whole time, as a share, that may be spent in the pauses of changes of its own accord.
    Default 0.05."""
    cool_down: Duration = "60s"
    """Least time between two changes of its own accord. Nodes that are lost or that a job of higher priority
    needs do not wait for it. Default 60s."""
