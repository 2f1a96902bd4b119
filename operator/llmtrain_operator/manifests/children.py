"""The objects of a job beside its pods."""

from __future__ import annotations

from typing import Any

from llmtrain_operator import network, scheduling
from llmtrain_operator.api import JobSpec
from llmtrain_operator.manifests.identity import common_labels, owner, selector
from llmtrain_operator.manifests.settings import Settings
from llmtrain_operator.state import JobView


def children(
    job: JobView, spec: JobSpec, settings: Settings, group_size: int = 0, staying: int = 0
) -> list[dict[str, Any]]:
    """The objects beside the pods, in the order in which they are applied.

    `group_size`: see `scheduling`. `staying`: see `plan.budget`.
    """
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "automountServiceAccountToken": False}
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        # Members find each other before they are Ready, and a member is Ready only while it trains.
        "spec": {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": selector(job)},
    }
    budget = {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "spec": {
            "minAvailable": staying,
            "selector": {"matchLabels": selector(job)},
            "unhealthyPodEvictionPolicy": "AlwaysAllow",  # one that does not work cannot be missed
        },
    }
    objects: list[dict[str, Any]] = [account, service, budget]
    if settings.member_egress is not None:
        readers = settings.metrics_from if settings.metrics_port else ()
        rules = network.policy_spec(selector(job), spec, settings.member_egress, readers)
        objects.append({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "spec": rules})
    metadata = {
        "name": job.name,
        "namespace": job.namespace,
        "labels": common_labels(job),
        "ownerReferences": owner(job),
    }
    objects += scheduling.groups(job, spec, group_size)
    return [{**child, "metadata": {**metadata, **child.get("metadata", {})}} for child in objects]
