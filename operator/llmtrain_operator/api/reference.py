"""docs/api.md, generated from the models: `python -m llmtrain_operator.api.reference` prints it.

Pure but for that print. It is written from the schema that the API server has, so what it says about types, bounds and
defaults is what holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, get_args

from llmtrain_operator.api.crd import crd
from llmtrain_operator.conditions import ConditionType
from llmtrain_operator.contract import names

_INTRODUCTION: Final = f"""\
<!-- Generated from llmtrain_operator.api by `make docs`; do not edit. -->
# API reference
`{names.KIND}` ({names.API_VERSION}, short name `{names.SHORT_NAME}`). `kubectl explain ltj.spec --recursive` shows the
same in a terminal, `llmtrain validate FILE` checks a file without a cluster. A field without a default may be absent;
what that means stands beside it. Fields in bold are required, in the status always there.
"""

CONDITIONS: Final[Mapping[str, str]] = {
    "Valid": "The spec can be carried out. If not, the message names each field, its value and the remedy.",
    "Running": "The members train. If not, the reason says what they wait for or what stopped them.",
    "Recovering": "A round was lost and the next has not done a step yet.",
    "Resizing": "The members in the round are not as many as are wanted.",
    "Suspended": "The job is held: no pods.",
    "Complete": "All steps are done and the model is in `spec.output`, if that is given. The end.",
    "Failed": "The job cannot go on; the message is the trainer's own error. The end.",
    "Protected": "A loss costs at most the steps since the newest checkpoint. If not, the reason says what is missing.",
    "Degraded": "Training goes on, but snapshots in memory are not taken, or their copies do not keep up.",
    "Tracked": "Experiment trackers have kept what was given to them; only where spec.tracking asks for any.",
    "Straggling": "A member is persistently slower than the others, who wait for it; status.stragglers names it.",
    "ObjectivesMet": "The newest incident kept what `spec.recovery.objectives` asks for. Absent before there is one.",
    "PreflightPassed": "No member's node was found wanting by `spec.recovery.preflight`, if that is enabled.",
    "Fits": "The workers find room in the accelerators and the pods' limits, by an estimate. It holds up no job.",
    "Autoscaled": "`spec.autoscale` chooses how many members are wanted; the reason says why so many.",
    "Durable": "Checkpoints are saved. False: the newest attempt failed, in the storage's words; Unknown: none yet.",
    "Scheduled": "The members have their places. If not, the message says what they wait for.",
}


def markdown() -> str:
    """The text of docs/api.md."""
    schema = crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    lines = [_INTRODUCTION]
    for part in ("spec", "status"):
        lines += _object(part, schema["properties"][part])
    lines += _whole(schema)
    lines += _conditions()
    return "\n".join(lines) + "\n"


def _object(path: str, schema: Mapping[str, Any]) -> Iterator[str]:
    """A section with a table, then those of the objects in it."""
    yield f"## {path}"
    yield f"{schema.get('description', '')}\n"
    yield "| field | type | default | meaning |"
    yield "| --- | --- | --- | --- |"
    inner = []
    for name, field in schema["properties"].items():
        shown = f"**{name}**" if name in schema.get("required", ()) else name
        below = _below(f"{path}.{name}", field)
        if below:
            inner.append(below)
            shown = f"[{shown}](#{_anchor(below[0])})"
        yield f"| {shown} | {_cell(_type(field))} | {_default(field)} | {_cell(_meaning(field))} |"
    yield ""
    yield from (f"- {rule['message']}." for rule in schema.get("x-kubernetes-validations", ()))
    yield ""
    for each in inner:
        yield from _object(*each)


def _below(path: str, field: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]] | None:
    """The object with fields of its own that a field is, or is a list of."""
    if "properties" in field:
        return path, field
    if "properties" in field.get("items", {}):
        return f"{path}[]", field["items"]
    return None


def _type(field: Mapping[str, Any]) -> str:
    if field.get("x-kubernetes-preserve-unknown-fields"):
        return "object, any fields"
    if field.get("x-kubernetes-int-or-string"):
        return "integer or string"
    if "enum" in field:
        return " or ".join(f"`{each}`" for each in field["enum"])
    kind = str(field.get("type", ""))
    if kind == "array":
        return f"list of {_type(field['items'])}{_bounds(field, 'minItems', 'maxItems', ' items')}"
    if kind == "object" and "additionalProperties" in field:
        return f"map to {_type(field['additionalProperties'])}"
    if field.get("format") == "date-time":
        return "time"
    return kind + _bounds(field, "minimum", "maximum", "") + (f", `{field['pattern']}`" if "pattern" in field else "")


def _bounds(field: Mapping[str, Any], least: str, most: str, unit: str) -> str:
    low, high = field.get(least), field.get(most)
    words = []
    if low is not None:
        words.append(f"more than {low:g}" if field.get("exclusiveMinimum") else f"at least {low:g}")
    if high is not None and high != 2**31 - 1:
        words.append(f"less than {high:g}" if field.get("exclusiveMaximum") else f"at most {high:g}")
    return f", {' and '.join(words)}{unit}" if words else ""


def _default(field: Mapping[str, Any]) -> str:
    if "default" not in field or "properties" in field:
        return ""
    value = field["default"]
    if value in ("", [], {}):
        return "empty"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _whole(schema: Mapping[str, Any]) -> Iterator[str]:
    """The rules about the object as a whole; those that differ in one field's name are one."""
    yield "## Name, and what cannot change\n"
    fields: dict[str, list[str]] = {}
    for rule in schema["x-kubernetes-validations"]:
        subject, _, rest = rule["message"].partition(" ")
        fields.setdefault(rest, []).append(subject)
    yield from (f"- {', '.join(subjects)} {rest}." for rest, subjects in fields.items())
    yield ""


def _conditions() -> Iterator[str]:
    yield "## Conditions\n"
    yield "`status.conditions` are metav1.Conditions; reason and message say why. Wait for one with"
    yield "`kubectl wait ltj/NAME --for=condition=Complete`.\n"
    yield "| type | when True |"
    yield "| --- | --- |"
    yield from (f"| {kind} | {CONDITIONS[kind]} |" for kind in get_args(ConditionType))


def _meaning(field: Mapping[str, Any]) -> str:
    """The description, but for a default that has a column of its own."""
    words = str(field.get("description", ""))
    return words.removesuffix(f" Default {_default(field).strip('`')}.") if _default(field) else words


def _cell(words: str) -> str:
    return words.replace("|", "\\|").replace("\n", " ")


def _anchor(path: str) -> str:
    """As GitHub makes them of headings."""
    return "".join(c for c in path.lower() if c.isalnum() or c in "-_")


if __name__ == "__main__":
    print(markdown(), end="")
