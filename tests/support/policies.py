"""NetworkPolicy semantics as a pure function: what a network plugin that enforces policies would let through.

networking.k8s.io/v1: a pod that some policy selects for a direction accepts in it only what a rule of one of those
policies allows; any other pod accepts everything; a connection needs the consent of both ends. Pods are matched by
selectors, addresses outside the cluster by ipBlock: the specification leaves open whether ipBlock sees a pod's
address, so here it never does. What a pod's own node sends to it (kubelet probes) always passes and is not asked about.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Object = Mapping[str, Any]


@dataclass(frozen=True)
class Pod:
    """One end of a connection in the cluster; `ports` are the container ports that have names."""

    namespace: str
    labels: Mapping[str, str]
    ports: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, obj: Object) -> Pod:
        """The pod that a manifest describes."""
        ports = [port for container in obj["spec"]["containers"] for port in container.get("ports", ())]
        named = {port["name"]: port["containerPort"] for port in ports if "name" in port}
        return cls(obj["metadata"]["namespace"], obj["metadata"]["labels"], named)


End = Pod | str
"""A pod, or the address of something outside the cluster."""


@dataclass(frozen=True)
class Network:
    """The policies of a cluster and the labels of its namespaces."""

    policies: tuple[Object, ...]
    namespaces: Mapping[str, Mapping[str, str]]

    def refusal(self, source: End, destination: End, port: int, protocol: str = "TCP") -> str:
        """Why the connection is refused, naming direction and policies; empty if it is allowed."""
        target = destination if isinstance(destination, Pod) else None
        for direction, end, peer in (("Egress", source, destination), ("Ingress", destination, source)):
            policies = self._selecting(end, direction)
            rules = [rule for policy in policies for rule in policy["spec"].get(direction.lower()) or ()]
            if policies and not any(
                _port_matches(rule, target, port, protocol) and self._peer_matches(rule, direction, end, peer)
                for rule in rules
            ):
                return f"{direction} of {', '.join(sorted(policy['metadata']['name'] for policy in policies))}"
        return ""

    def _selecting(self, end: End, direction: str) -> list[Object]:
        if not isinstance(end, Pod):
            return []
        return [
            policy
            for policy in self.policies
            if policy["metadata"]["namespace"] == end.namespace
            and direction in policy["spec"]["policyTypes"]
            and selects(policy["spec"]["podSelector"], end.labels)
        ]

    def _peer_matches(self, rule: Object, direction: str, end: End, peer: End) -> bool:
        allowed = rule.get("to" if direction == "Egress" else "from") or ()
        assert isinstance(end, Pod)
        return not allowed or any(self._is_peer(each, end.namespace, peer) for each in allowed)

    def _is_peer(self, allowed: Object, namespace: str, peer: End) -> bool:
        if isinstance(peer, str):
            return "ipBlock" in allowed and _in_block(allowed["ipBlock"], peer)
        if "ipBlock" in allowed:
            return False
        if "namespaceSelector" in allowed:
            in_namespace = selects(allowed["namespaceSelector"], self.namespaces[peer.namespace])
        else:
            in_namespace = peer.namespace == namespace
        return in_namespace and selects(allowed.get("podSelector", {}), peer.labels)


def selects(selector: Object, labels: Mapping[str, str]) -> bool:
    """Whether a LabelSelector matches; an empty one matches everything."""
    plain = (labels.get(key) == value for key, value in (selector.get("matchLabels") or {}).items())
    return all(plain) and all(_meets(each, labels) for each in selector.get("matchExpressions") or ())


def _meets(requirement: Object, labels: Mapping[str, str]) -> bool:
    value, values = labels.get(requirement["key"]), requirement.get("values") or ()
    match requirement["operator"]:
        case "In":
            return value is not None and value in values
        case "NotIn":
            return value not in values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case operator:
            raise ValueError(f"no operator of a label selector: {operator}")


def _in_block(block: Object, address: str) -> bool:
    ip = ipaddress.ip_address(address)
    return ip in ipaddress.ip_network(block["cidr"]) and not _in_any(block.get("except") or (), address)


def _in_any(cidrs: Iterable[str], address: str) -> bool:
    return any(ipaddress.ip_address(address) in ipaddress.ip_network(cidr) for cidr in cidrs)


def _port_matches(rule: Object, target: Pod | None, port: int, protocol: str) -> bool:
    ports = rule.get("ports") or ()
    return not ports or any(_is_port(each, target, port, protocol) for each in ports)


def _is_port(allowed: Object, target: Pod | None, port: int, protocol: str) -> bool:
    if allowed.get("protocol", "TCP") != protocol:
        return False
    first = allowed.get("port")
    if first is None:
        return True
    if isinstance(first, str):
        return target is not None and target.ports.get(first) == port
    return first <= port <= allowed.get("endPort", first)
