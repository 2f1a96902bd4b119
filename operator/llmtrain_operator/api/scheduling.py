"""`spec.scheduling`: how the members are placed and queued."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llmtrain_operator.api.record import Record

Name = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
LabelKey = Annotated[
    str, Field(min_length=1, max_length=317, pattern=r"^([a-z0-9.-]+/)?[a-zA-Z0-9]([-_.a-zA-Z0-9]*[a-zA-Z0-9])?$")
]


class Topology(Record):
    """Whether members keep apart or stay together."""

    policy: Literal["spread", "pack"] = "spread"
    """spread: as evenly as possible over the domains; pack: into as few domains as possible. Default spread."""
    key: LabelKey = "kubernetes.io/hostname"
    """Node label whose values are the domains, such as topology.kubernetes.io/zone. Default kubernetes.io/hostname."""
    required: bool = False
    """Whether a member that does not fit waits. Default false: it goes where there is room."""


class Scheduling(Record):
    """How the members are placed and queued."""

    queue: Name | None = None
    """Kueue LocalQueue that admits the members, or with gang volcano a Volcano queue. Default: none."""
    gang: Literal["none", "native", "coscheduling", "volcano"] = "none"
    """Who sees to it that nodes.min members get nodes together or not at all: Kubernetes itself (native),
    scheduler-plugins (coscheduling) or Volcano. Default none."""
    scheduler_name: Name | None = None
    """Scheduler of the members. Default: gang's (scheduler-plugins-scheduler, volcano), else the cluster's."""
    priority_class_name: Name | None = None
    """PriorityClass of the members. Default: the cluster's."""
    topology: Topology = Topology()
    """Whether members keep apart or stay together."""
