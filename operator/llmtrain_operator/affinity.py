"""A pod that is kept off nodes, whatever its template says of nodes by itself. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

_PATH: Final = ("affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution")


def keep_off(pod_spec: Mapping[str, Any], nodes: Sequence[str]) -> dict[str, Any]:
    """`pod_spec` with none of these nodes allowed, beside all that it requires already.

    A template of an odd shape is left to the API server.
    """
    # One requirement for each node: the API takes a single value here. All of a term's have to hold.
    added = [{"key": "metadata.name", "operator": "NotIn", "values": [node]} for node in nodes]
    return dict(_required(pod_spec, _PATH, added) if added else pod_spec)


def _required(parent: Any, path: Sequence[str], added: Sequence[Mapping[str, Any]]) -> Any:
    if not isinstance(parent, Mapping):
        return parent
    if path:
        return {**parent, path[0]: _required(parent.get(path[0]) or {}, path[1:], added)}
    terms = parent.get("nodeSelectorTerms", [None])
    if not isinstance(terms, list):
        return parent
    # One term is enough for a node to be allowed, so each of them has to rule these nodes out.
    return {**parent, "nodeSelectorTerms": [_with(term, added) for term in terms]}


def _with(term: Any, added: Sequence[Mapping[str, Any]]) -> Any:
    if term is None:
        return {"matchFields": list(added)}
    # An empty term allows no node; with these it would allow all others.
    if not isinstance(term, Mapping) or not (term.get("matchExpressions") or term.get("matchFields")):
        return term
    return {**term, "matchFields": [*(term.get("matchFields") or ()), *added]}
