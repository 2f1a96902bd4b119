"""The chart as a user renders it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import helm_python as helm
import yaml

CHART = Path(__file__).parents[2] / "charts" / "llmtrain"

Rights = dict[tuple[str, str], set[str]]
"""API group and resource -> verbs."""

RIGHTS: Rights = {
    ("llmtrain.io", "llmtrainjobs"): {"get", "list", "watch", "patch", "delete"},
    ("llmtrain.io", "llmtrainjobs/status"): {"patch"},
    ("llmtrain.io", "llmtrainjobs/finalizers"): {"update"},
    ("", "pods"): {"get", "list", "watch", "create", "delete"},
    ("", "services"): {"create", "patch"},
    ("", "serviceaccounts"): {"create", "patch"},
    ("policy", "poddisruptionbudgets"): {"create", "patch"},
    ("networking.k8s.io", "networkpolicies"): {"create", "patch"},
    ("scheduling.k8s.io", "podgroups"): {"create", "patch"},
    ("scheduling.volcano.sh", "podgroups"): {"create", "patch"},
    ("scheduling.x-k8s.io", "podgroups"): {"create", "patch"},
    ("", "events"): {"create", "patch"},
}
"""What the operator may do in the namespaces that it watches."""
CLUSTER_RIGHTS: Rights = {("authentication.k8s.io", "tokenreviews"): {"create"}, ("", "nodes"): {"list", "watch"}}
"""What it may do wherever it watches."""


def rights(role: dict[str, Any]) -> Rights:
    """What a role, or the API server's answer to a rules review, allows."""
    return {
        (group, resource): set(rule["verbs"])
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }


def render(values: dict[str, Any], release: str = "llmtrain") -> list[dict[str, Any]]:
    """The objects of `helm template RELEASE --namespace ops`. Raises HelmError."""
    with helm.Chart.load(str(CHART)) as chart:
        files = chart.render(values, name=release, namespace="ops")
    texts = [text for name, text in files.items() if name.endswith(".yaml")]
    return [obj for text in texts for obj in yaml.safe_load_all(text) if obj]


def find(objects: list[dict[str, Any]], kind: str, name: str = "") -> dict[str, Any]:
    """The one object of that kind whose name ends so."""
    [found] = [o for o in objects if o["kind"] == kind and o["metadata"]["name"].endswith(name)]
    return found


def containers(objects: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The operator pod's containers by name."""
    return {c["name"]: c for c in find(objects, "Deployment")["spec"]["template"]["spec"]["containers"]}
