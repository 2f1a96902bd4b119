"""By what the objects of a job are known: names, labels, owner."""

from __future__ import annotations

from typing import Any

from llmtrain_operator.contract import names
from llmtrain_operator.state import JobView


def pod_name(job: JobView, index: int, incarnation: int) -> str:
    """A name never used before: a dead node's pod object keeps its name for minutes."""
    return f"{job.name}-{index}-{incarnation}"


def selector(job: JobView) -> dict[str, str]:
    """The labels that all members of the job carry and nothing else does."""
    return {names.LABEL_JOB: job.name, names.LABEL_COMPONENT: "member"}


def common_labels(job: JobView) -> dict[str, str]:
    """Those of everything that is a job's."""
    return {
        names.LABEL_NAME: "llmtrain",
        names.LABEL_COMPONENT: "member",
        names.LABEL_MANAGED_BY: names.FIELD_MANAGER,
        names.LABEL_JOB: job.name,
    }


def owner(job: JobView) -> list[dict[str, Any]]:
    """Owner references: what has them goes with the job."""
    return [
        {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "name": job.name,
            "uid": job.uid,
            "controller": True,
            "blockOwnerDeletion": True,
        }
    ]
