"""Job -> what its NetworkPolicy says: who may reach its members, and whom they may reach. Pure.

Members take connections from each other, on the port of their metrics from those who may read them, and from nobody
else. They reach each other, the storage that the job names,
and what the installation grants to every job (the coordinator, DNS, rules of the administrator). A claim needs no
rule: it is mounted by the node. A policy knows addresses and labels but no host names: storage behind a name is
granted by its port, or by its namespace if the name is that of a Service.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from llmtrain_operator import places
from llmtrain_operator.api import JobSpec
from llmtrain_operator.api.tracking import WeightsAndBiases
from llmtrain_operator.contract import names, uris

Rule = Mapping[str, Any]
"""A NetworkPolicyEgressRule or NetworkPolicyPeer, as in manifests."""

NAMESPACE_LABEL: Final = "kubernetes.io/metadata.name"
_HTTPS: Final = 443
_IDENTITY_AGENTS: Final = "169.254.170.23/32"  # where the EKS Pod Identity agent of every node listens


def policy_spec(
    members: Mapping[str, str], spec: JobSpec, granted: Sequence[Rule], readers: Sequence[Rule] = ()
) -> dict[str, Any]:
    """`spec` of the NetworkPolicy for the pods with the labels `members`; `granted` are egress rules of every job,
    `readers` peers that may read metrics."""
    each_other = {"podSelector": {"matchLabels": dict(members)}}
    return {
        **each_other,
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": [each_other]}, *metrics_rules(readers)],
        "egress": [{"to": [each_other]}, *storage_rules(spec), *hub_rules(spec), *tracker_rules(spec), *granted],
    }


def metrics_rules(readers: Sequence[Rule]) -> list[dict[str, Any]]:
    """What lets these peers read the members' metrics, and nothing else of theirs. By the port's name: a job's template
    may put it elsewhere."""
    port = {"protocol": "TCP", "port": names.METRICS_PORT_NAME}
    return [{"from": [dict(peer) for peer in readers], "ports": [port]}] if readers else []


def storage_rules(spec: JobSpec) -> list[dict[str, Any]]:
    """What lets members reach the S3 server of the job, and its keys where no secret holds them. Empty without S3."""
    checkpoint = spec.checkpoint
    if checkpoint is None:
        return []
    places = (checkpoint.durable.storage if checkpoint.durable else None, checkpoint.restore_from)
    if not any(place and place.startswith("s3://") for place in places):
        return []
    s3 = checkpoint.s3
    rules = [_to_server(s3.endpoint)] if s3 and s3.endpoint else [_any_address(_HTTPS)]
    if s3 is None or s3.credentials is None:
        # Workload identity: the security token service, or the agent on the node that stands in for it.
        rules += [_any_address(_HTTPS), {"to": [{"ipBlock": {"cidr": _IDENTITY_AGENTS}}], "ports": _tcp(80)}]
    return [rule for number, rule in enumerate(rules) if rule not in rules[:number]]


def hub_rules(spec: JobSpec) -> list[dict[str, Any]]:
    """What lets members fetch a model or tokenizer that is given by its hub id: the hub sends them on to other hosts.

    A hub that answers elsewhere than at port 443 (HF_ENDPOINT) has to be granted by the installation.
    """
    return [_any_address(_HTTPS)] if places.from_hub(spec) else []


def tracker_rules(spec: JobSpec) -> list[dict[str, Any]]:
    """What lets rank 0, which any member may be, reach the servers of experiment trackers."""
    given = spec.tracking
    if given is None:
        return []
    online = [each for each in (given.wandb, given.swanlab) if each and each.mode == "online"]
    servers = [each.base_url if isinstance(each, WeightsAndBiases) else each.host for each in online]
    if given.mlflow and uris.is_web(given.mlflow.tracking_uri):
        servers.append(given.mlflow.tracking_uri)
    rules = [_to_server(server) if server else _any_address(_HTTPS) for server in servers]
    return [rule for number, rule in enumerate(rules) if rule not in rules[:number]]


def _to_server(endpoint: str) -> dict[str, Any]:
    url = urlsplit(endpoint)
    port = url.port or (_HTTPS if url.scheme == "https" else 80)
    host = url.hostname or ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        labels = host.split(".")
        if len(labels) > 2 and labels[2] == "svc":
            # Most networks judge a connection by the pod behind the Service, whose port may be another.
            return {"to": [{"namespaceSelector": {"matchLabels": {NAMESPACE_LABEL: labels[1]}}}]}
        return _any_address(port)
    return {"to": [{"ipBlock": {"cidr": f"{address}/{address.max_prefixlen}"}}], "ports": _tcp(port)}


def _any_address(port: int) -> dict[str, Any]:
    return {"ports": _tcp(port)}


def _tcp(port: int) -> list[dict[str, Any]]:
    return [{"protocol": "TCP", "port": port}]
