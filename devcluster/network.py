"""Addresses, links and routes: a bridge in the cluster's network namespace, one veth to a namespace per node. Pure.

Pods are routed, not bridged: each node's pod range is a static route, so pods reach each other across nodes
untranslated, and every packet passes the node's Service rules.
"""

import ipaddress
from collections.abc import Sequence

from devcluster import config

BRIDGE = "br0"


def setup_script(nodes: Sequence[str]) -> str:
    """Shell script, run inside the cluster's namespaces, that makes the whole network."""
    width = ipaddress.ip_network(config.NODE_NETWORK).prefixlen
    lines = [
        f"link add {BRIDGE} type bridge",
        f"addr add {config.CONTROL_PLANE_IP}/{width} dev {BRIDGE}",
        f"link set {BRIDGE} up",
    ]
    for node in nodes:
        lines += [
            f"link add {node} type veth peer name eth0 netns {node}",
            f"link set {node} master {BRIDGE} up",
            f"route add {config.pod_cidr(node)} via {config.node_ip(node)}",
        ]
    script = "".join(f"ip netns add {node}\n" for node in nodes) + _batch("", lines)
    for node in nodes:
        script += _batch(f"-n {node} ", _node_lines(node, nodes, width))
        script += f"nsenter --net=/run/netns/{node} sysctl -qw net.ipv4.ip_forward=1\n"
    return script


def _node_lines(node: str, nodes: Sequence[str], width: int) -> list[str]:
    return [
        "link set lo up",
        f"addr add {config.node_ip(node)}/{width} dev eth0",
        "link set eth0 up",
        f"route add default via {config.CONTROL_PLANE_IP}",
        "route add unreachable 169.254.0.0/16",
        *(f"route add {config.pod_cidr(other)} via {config.node_ip(other)}" for other in nodes if other != node),
    ]


def _batch(options: str, lines: Sequence[str]) -> str:
    return f"ip {options}-batch - <<END\n" + "\n".join(lines) + "\nEND\n"


def link_script(node: str, *, up: bool) -> str:
    """Connect or cut a node's cable, seen from the switch's side."""
    return f"ip link set {node} {'up' if up else 'down'}"


def rate_script(node: str, rate: str | None) -> str:
    """Let so much (such as 10mbit) through a node's cable in each direction, None: all that it can."""
    ends = f"tc qdisc {{verb}} dev {node} root{{how}}", f"tc -n {node} qdisc {{verb}} dev eth0 root{{how}}"
    if rate is None:
        return "; ".join(f"{end.format(verb='del', how='')} 2> /dev/null || true" for end in ends)
    how = f" tbf rate {rate} burst 64kb latency 400ms"
    return " && ".join(end.format(verb="replace", how=how) for end in ends)


def forget_pods_script(node: str) -> str:
    """What a power cut does to a node's network state: the pods' links and the packet filter's rules are gone."""
    return (
        f"for link in $(ip -n {node} -br link | sed -n 's/^\\(veth[^@ ]*\\).*/\\1/p'); do"
        f" ip -n {node} link del $link || true; done; nsenter --net=/run/netns/{node} nft flush ruleset"
    )
