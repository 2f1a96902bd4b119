"""What the installation decides about pods."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from llmtrain_operator import departure, network
from llmtrain_operator.api import JobSpec
from llmtrain_operator.contract import names
from llmtrain_operator.policy import UNLIMITED, Policy
from llmtrain_operator.state import PodView


@dataclass(frozen=True, slots=True)
class Settings:
    """What the installation, not the job, decides about pods."""

    trainer_image: str
    operator_image: str
    coordinator_urls: str
    coordinator_ca: str
    image_pull_policy: str = "IfNotPresent"
    image_pull_secrets: tuple[str, ...] = ()
    member_egress: tuple[network.Rule, ...] | None = None
    """Where every member may connect to, beside what its job needs; None: jobs get no NetworkPolicy."""
    can_avoid: bool = True
    """Whether pods can be kept off a node: not where all nodes are one machine."""
    policy: Policy = UNLIMITED
    """What each namespace is granted."""
    departure_taints: tuple[str, ...] = departure.TAINTS
    """Keys of the taints that say that a node is about to go."""
    metrics_port: int = names.METRICS_PORT
    """Where each member's agent serves its metrics; 0: nowhere, because all members are on one machine."""
    metrics_from: tuple[network.Rule, ...] = ()
    """Who may read them, as peers in a NetworkPolicy; nobody if empty."""


def like(settings: Settings, spec: JobSpec, others: Collection[PodView]) -> Settings:
    """The settings by which the `others` of the job that live were made, as to the image: workers of two versions do
    not understand each other. After an upgrade that is the old one until the job has no pod left."""
    image = next((pod.trainer for pod in others if pod.trainer and pod.phase == "Running" and not pod.deleting), None)
    if image is None:
        return settings
    if spec.image is None or image == spec.image:  # ours then, if it is not now
        return replace(settings, trainer_image=image)
    return replace(settings, operator_image=image)


def has_own_image(spec: JobSpec, settings: Settings) -> bool:
    """Whether its members run an image of the user's."""
    return spec.image is not None and spec.image != settings.trainer_image
