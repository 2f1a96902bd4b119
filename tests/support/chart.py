"""The chart as a user renders it, and its values as docs/install.md lists them.

`python -m tests.support.chart` writes that list anew.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
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
    ("", "services"): {"get", "create", "patch", "delete"},
    ("", "serviceaccounts"): {"get", "create", "patch", "delete"},
    ("policy", "poddisruptionbudgets"): {"get", "create", "patch", "delete"},
    ("networking.k8s.io", "networkpolicies"): {"get", "create", "patch", "delete"},
    ("scheduling.k8s.io", "podgroups"): {"get", "create", "patch"},
    ("scheduling.volcano.sh", "podgroups"): {"get", "create", "patch"},
    ("scheduling.x-k8s.io", "podgroups"): {"get", "create", "patch"},
    ("", "events"): {"create", "patch"},
}
"""What the operator may do in the namespaces that it watches."""
CLUSTER_RIGHTS: Rights = {("authentication.k8s.io", "tokenreviews"): {"create"}, ("", "nodes"): {"list", "watch"}}
"""What it may do wherever it watches."""
LEASE_RIGHTS: Rights = {("coordination.k8s.io", "leases"): {"get", "patch"}}
"""What it may do with the one Lease of its release, in the release's namespace."""


def rights(role: dict[str, Any]) -> Rights:
    """What a role, or the API server's answer to a rules review, allows."""
    return {
        (group, resource): set(rule["verbs"])
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }


def render(values: dict[str, Any], release: str = "llmtrain", chart: Path = CHART) -> list[dict[str, Any]]:
    """The objects of `helm template RELEASE CHART --namespace ops`. Raises HelmError."""
    with helm.Chart.load(str(chart)) as loaded:
        files = loaded.render(values, name=release, namespace="ops")
    texts = [text for name, text in files.items() if name.endswith(".yaml")]
    return [obj for text in texts for obj in yaml.safe_load_all(text) if obj]


def find(objects: list[dict[str, Any]], kind: str, name: str = "") -> dict[str, Any]:
    """The one object of that kind whose name ends so."""
    [found] = [o for o in objects if o["kind"] == kind and o["metadata"]["name"].endswith(name)]
    return found


def containers(objects: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The operator pod's containers by name."""
    return {c["name"]: c for c in find(objects, "Deployment")["spec"]["template"]["spec"]["containers"]}


def values_of_schema(node: dict[str, Any] | None = None, path: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names and descriptions of all values; those with values in them by these alone."""
    node = node or json.loads((CHART / "values.schema.json").read_text())
    for name, each in node["properties"].items():
        if "properties" in each and name not in WHOLE:
            yield from values_of_schema(each, f"{path}{name}.")
        else:
            yield path + name, each["description"]


WHOLE = frozenset({"resources", "affinity", "labels"})
"""Values that are given as a whole: objects of Kubernetes, and labels."""


def values_of_file(node: dict[str, Any] | None = None, path: str = "") -> dict[str, Any]:
    """Dotted names and defaults of all values in values.yaml."""
    node = node or yaml.safe_load((CHART / "values.yaml").read_text())
    found: dict[str, Any] = {}
    for name, each in node.items():
        if isinstance(each, dict) and each and name not in WHOLE:
            found |= values_of_file(each, f"{path}{name}.")
        else:
            found[path + name] = each
    return found


_BEGIN, _END = "<!-- values: python -m tests.support.chart -->", "<!-- end of values -->"


def values_table() -> str:
    """The table of values in docs/install.md, with its markers."""
    defaults = values_of_file()
    rows = [
        f"| `{name}` | `{json.dumps(defaults[name])}` | {text.replace('|', '/')} |"
        for name, text in values_of_schema()
        if name in defaults
    ]
    return "\n".join([_BEGIN, "| value | default | what it is |", "| --- | --- | --- |", *rows, _END])


if __name__ == "__main__":
    _docs = CHART.parents[1] / "docs" / "install.md"
    _before, _, _rest = _docs.read_text().partition(_BEGIN)
    _docs.write_text(_before + values_table() + _rest.partition(_END)[2])
