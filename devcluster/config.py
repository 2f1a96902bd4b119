"""What a cluster is asked to be, and the addresses that follow from it. Pure.

Every cluster has its own network namespaces, so all clusters use the same addresses without meeting.
"""

import dataclasses
import re
from dataclasses import dataclass, field
from typing import Any

from devcluster.errors import DevclusterError

CONTROL_PLANE_IP = "10.250.0.1"
CONTROL_PLANE_HOSTNAME = "cp"
API_PORT = 6443
NODE_NETWORK = "10.250.0.0/24"
POD_NETWORK = "10.251.0.0/16"
SERVICE_NETWORK = "10.252.0.0/20"
KUBERNETES_SERVICE_IP = "10.252.0.1"
CLUSTER_DOMAIN = "cluster.local"
PAUSE_IMAGE = "localhost/pause:1"
SHARED_VOLUMES = 64
"""They are bound once and kept for whoever wants to look: a cluster's whole test session must not use them up."""
MAX_NODES = 64

_SUFFIXES = {"": 0, "Ki": 10, "Mi": 20, "Gi": 30}


@dataclass(frozen=True)
class ClusterConfig:
    """Settings of one cluster. The defaults trade idle CPU for failures that are noticed within seconds.

    `nodes` 0 means control plane only. `node_memory` is a Kubernetes quantity (Ki, Mi, Gi) and a real limit of the
    node's cgroup; "" gives every node the whole machine. `node_cpu` is how many cores a node offers to pods (0: all).
    `accelerators` maps an extended resource, such as nvidia.com/gpu, to what each node advertises of it.
    `grace_seconds`: silence until a node is NotReady; `toleration_seconds`: from there to the eviction of its pods.
    """

    name: str = "dev"
    nodes: int = 3
    node_memory: str = "6Gi"
    node_cpu: int = 0
    accelerators: dict[str, int] = field(default_factory=dict)
    grace_seconds: int = 8
    toleration_seconds: int = 3
    feature_gates: dict[str, bool] = field(default_factory=lambda: {"GenericWorkload": True, "GangScheduling": True})
    runtime_config: tuple[str, ...] = ("scheduling.k8s.io/v1alpha2=true",)

    def __post_init__(self) -> None:
        """Refuse what could not work later, naming field and value."""
        if not re.fullmatch(r"[a-z]([a-z0-9-]{0,30}[a-z0-9])?", self.name):
            raise DevclusterError(f"name {self.name!r}: use at most 32 of a-z, 0-9 and -, beginning with a letter")
        if not 0 <= self.nodes <= MAX_NODES:
            raise DevclusterError(f"nodes {self.nodes}: must be between 0 (control plane only) and {MAX_NODES}")
        if self.node_memory:
            quantity_bytes(self.node_memory)
        for resource, count in self.accelerators.items():
            if "/" not in resource or count < 0:
                raise DevclusterError(f"accelerators {resource}={count}: write DOMAIN/NAME=COUNT, as nvidia.com/gpu=2")

    @property
    def node_names(self) -> tuple[str, ...]:
        """n1 to nN."""
        return tuple(f"n{index}" for index in range(1, self.nodes + 1))

    @property
    def gates_flag(self) -> str:
        """Value for --feature-gates; empty if there are none."""
        return ",".join(f"{gate}={str(on).lower()}" for gate, on in self.feature_gates.items())

    def to_json(self) -> dict[str, Any]:
        """For the state file."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(value: dict[str, Any]) -> "ClusterConfig":
        """Inverse of to_json."""
        return ClusterConfig(**{**value, "runtime_config": tuple(value["runtime_config"])})


def node_index(name: str) -> int:
    """3 for n3."""
    return int(name.removeprefix("n"))


def node_ip(name: str) -> str:
    """Address of a node in the node network."""
    return f"10.250.0.{10 + node_index(name)}"


def pod_cidr(name: str) -> str:
    """The node's share of the pod network."""
    return f"10.251.{node_index(name)}.0/24"


def quantity_bytes(quantity: str) -> int:
    """Bytes of a memory quantity with a binary suffix: 6Gi -> 6442450944."""
    found = re.fullmatch(r"(\d+)(Ki|Mi|Gi)?", quantity)
    if found is None:
        raise DevclusterError(f"memory {quantity!r}: write a number with Ki, Mi or Gi, as 6Gi")
    return int(found[1]) << _SUFFIXES[found[2] or ""]


def parse_accelerators(options: tuple[str, ...] | list[str]) -> dict[str, int]:
    """("nvidia.com/gpu=2",) -> {"nvidia.com/gpu": 2}."""
    parsed = {}
    for option in options:
        resource, separator, count = option.rpartition("=")
        if not separator or not count.isdigit():
            raise DevclusterError(f"accelerators {option!r}: write DOMAIN/NAME=COUNT, as nvidia.com/gpu=2")
        parsed[resource] = int(count)
    return parsed
