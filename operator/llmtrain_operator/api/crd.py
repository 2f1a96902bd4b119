"""The CustomResourceDefinition, generated from the models: `python -m llmtrain_operator.api.crd` prints it as YAML.

Pure but for that print. JSON Schema as pydantic writes it becomes a structural schema: references inlined, null
unions collapsed, bounds in OpenAPI 3.0's spelling. Defaults stand in the schema, so that `kubectl get -o yaml` shows
them; those that depend on other fields (nodes.max, kvHeads, ...) are filled in by whoever reads the spec.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import yaml

from llmtrain_operator.api.status.job import LLMTrainJob
from llmtrain_operator.api.validation import MAX_NAME, NAME_PATTERN, NAME_RULE
from llmtrain_operator.contract import names

_HEADER: Final = "# Generated from llmtrain_operator.api by `make crd`; do not edit.\n"
_FIRST: Final = ("description", "type", "format", "default", "enum")
_DROPPED: Final = frozenset(
    {"title", "$defs", "anyOf", "default", "exclusiveMinimum", "exclusiveMaximum", "additionalProperties", "properties"}
)
_FORMATS: Final = {"integer": "int64", "number": "double"}

_FROZEN: Final = (
    *("image?", "nodes.procPerNode", "nodes.acceleratorResource?", "model?", "data?", "training", "deepspeed"),
    *("entrypoint?", "checkpoint?", "recovery.numerics", "output?", "template?"),
)
"""What the members of a round must agree on. Counts of nodes, suspend, other recovery and the time to live may change.
A question mark marks what may be absent."""

_EDITABLE: Final = (
    "(!has(oldSelf.status) || !has(oldSelf.status.round)) && "
    "(oldSelf.spec.suspend || (has(oldSelf.status) && has(oldSelf.status.state) && oldSelf.status.state == 'Invalid'))"
)

_COLUMNS: Final = (
    ("State", "string", ".status.state", 0),
    ("Nodes", "string", ".status.nodes", 0),
    ("Step", "integer", ".status.progress.step", 0),
    ("Loss", "number", ".status.progress.loss", 0),
    ("ETA", "string", ".status.progress.eta", 0),
    ("Goodput", "string", ".status.goodput", 0),
    ("Restarts", "integer", ".status.restarts", 0),
    ("Age", "date", ".metadata.creationTimestamp", 0),
    ("Steps", "integer", ".spec.training.maxSteps", 1),
    ("Tokens/s", "number", ".status.progress.tokensPerSecond", 1),
)


def crd() -> dict[str, Any]:
    """The CustomResourceDefinition object."""
    version = {
        "name": names.VERSION,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": _job_schema()},
        "additionalPrinterColumns": [_column(*column) for column in _COLUMNS],
        "selectableFields": [{"jsonPath": ".spec.suspend"}, {"jsonPath": ".status.state"}],
        "subresources": {
            "status": {},
            "scale": {
                "specReplicasPath": ".spec.nodes.desired",
                "statusReplicasPath": ".status.replicas",
                "labelSelectorPath": ".status.selector",
            },
        },
    }
    kind = {
        "kind": names.KIND,
        "listKind": f"{names.KIND}List",
        "plural": names.PLURAL,
        "singular": names.SINGULAR,
        "shortNames": [names.SHORT_NAME],
        "categories": [names.CATEGORY],
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{names.PLURAL}.{names.GROUP}", "labels": {names.LABEL_NAME: "llmtrain"}},
        "spec": {"group": names.GROUP, "names": kind, "scope": "Namespaced", "versions": [version]},
    }


def as_yaml() -> str:
    """The text of crds/llmtrainjobs.yaml."""
    return _HEADER + yaml.safe_dump(crd(), sort_keys=False, width=120, allow_unicode=True)


def _column(name: str, kind: str, path: str, priority: int) -> dict[str, Any]:
    column = {"name": name, "type": kind, "jsonPath": path}
    return column | {"priority": priority} if priority else column


def _job_schema() -> dict[str, Any]:
    raw = LLMTrainJob.model_json_schema(mode="validation", by_alias=True)
    schema = structural(raw, raw["$defs"])
    properties = schema["properties"]
    for builtin in ("apiVersion", "kind"):
        properties[builtin] = {"type": "string"}
    properties["metadata"] = {"type": "object"}
    properties["status"] = _without_defaults(properties["status"])
    schema["required"] = ["spec"]
    schema["x-kubernetes-validations"] = [_name_rule(), *map(_frozen_rule, _FROZEN)]
    return schema


def structural(node: Mapping[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON Schema node in the form that Kubernetes accepts in a CRD."""
    node = _resolved(node, definitions)
    result = {key: node[key] for key in (*_FIRST, *node) if key in node and key not in _DROPPED}
    for bound in ("minimum", "maximum"):
        exclusive = "exclusive" + bound.capitalize()
        if exclusive in node:
            result |= {bound: node[exclusive], exclusive: True}
    if node.get("type") in _FORMATS:
        result.setdefault("format", _FORMATS[node["type"]])
    if "default" in node and node["default"] is not None:
        # In full: the API server judges an object's default by its rules before it fills in what is nested.
        result["default"] = _without_nulls(node["default"])
    if node.get("type") == "object" and "x-kubernetes-preserve-unknown-fields" not in node:
        result |= _object_parts(node, definitions)
    if "items" in node:
        result["items"] = structural(node["items"], definitions)
    return result


def _object_parts(node: Mapping[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    if "properties" in node:
        return {"properties": {name: structural(each, definitions) for name, each in node["properties"].items()}}
    values = node.get("additionalProperties")
    return {"additionalProperties": structural(values, definitions)} if isinstance(values, Mapping) else {}


def _resolved(node: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any]:
    """`node` with its reference and its union with null replaced by what they stand for; its own words win."""
    while True:
        if "$ref" in node:
            target: Mapping[str, Any] = definitions[node["$ref"].rpartition("/")[2]]
        elif "x-kubernetes-int-or-string" not in node and "anyOf" in node:
            (target,) = (each for each in node["anyOf"] if each.get("type") != "null")
        else:
            return node
        node = {**target, **{key: value for key, value in node.items() if key not in ("$ref", "anyOf")}}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nulls(each) for key, each in value.items() if each is not None}
    return value


def _without_defaults(node: Any) -> Any:
    """Status says what was written and nothing else, so that the operator sees its own writes unchanged."""
    if not isinstance(node, Mapping):
        return node
    properties = {name: _without_defaults(each) for name, each in node.get("properties", {}).items()}
    rest = {key: _without_defaults(value) for key, value in node.items() if key not in ("default", "properties")}
    return rest | ({"properties": properties} if properties else {})


def _name_rule() -> dict[str, str]:
    rule = f"self.metadata.name.size() <= {MAX_NAME} && self.metadata.name.matches('{NAME_PATTERN}')"
    return {"rule": rule, "message": NAME_RULE}


def _frozen_rule(path: str) -> dict[str, str]:
    plain = path.removesuffix("?")
    new, old = f"self.spec.{plain}", f"oldSelf.spec.{plain}"
    # CEL's optional values would say this shorter, but the API server puts no bound on what comparing them costs.
    same = f"has({new}) == has({old}) && (!has({new}) || {new} == {old})" if path.endswith("?") else f"{new} == {old}"
    excuse = " || self.spec.suspend" if plain == "template" else ""  # Kueue restores it in the update that suspends
    return {
        "rule": f"{same} || {_EDITABLE}{excuse}",
        "message": (
            f"spec.{plain} cannot change while members train with it: suspend the job (llmtrain suspend) "
            "and wait for state Suspended"
        ),
        "fieldPath": f".spec.{plain}",
    }


if __name__ == "__main__":
    print(as_yaml(), end="")
