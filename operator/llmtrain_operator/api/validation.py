"""From the spec as it was written to a `JobSpec`, and everything that is wrong with it.

Pure. Nothing here raises for a bad spec: every finding is a `Problem` that names the field, the value and the remedy.
What the API server checks too (bounds, rules, most types) is checked again, for `llmtrain validate` has no server at
hand. Limit: what converts, such as "2" for 2, passes here and is refused there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from llmtrain_operator import places
from llmtrain_operator.api import deepspeed_check, scheduling_check, template_check
from llmtrain_operator.api.problem import Problem, unknown_key
from llmtrain_operator.api.record import Record
from llmtrain_operator.api.spec import JobSpec
from llmtrain_operator.contract import uris

__all__ = ["MAX_NAME", "NAME_PATTERN", "NAME_RULE", "Problem", "parse", "problems"]

MAX_NAME: Final = 58
"""A member's host name is {name}-{index}: at most 63 characters, five of them for the index."""
NAME_PATTERN: Final = "^[a-z][-a-z0-9]*$"
NAME_RULE: Final = (
    f"metadata.name must start with a letter, contain only a-z, 0-9 and -, and have at most {MAX_NAME} characters: "
    "it becomes the members' host names"
)


def parse(name: str, raw: Mapping[str, Any]) -> tuple[JobSpec | None, tuple[Problem, ...]]:
    """The spec of the job called `name`, and what is wrong with it. None if it cannot even be read."""
    try:
        spec = JobSpec.model_validate(raw)
    except ValidationError as error:
        return None, tuple(_from_pydantic(each, raw) for each in error.errors(include_url=False))
    return spec, problems(name, spec)


def problems(name: str, spec: JobSpec) -> tuple[Problem, ...]:
    """Everything wrong with a readable spec."""
    return (
        *_name(name),
        *_rules(spec, "spec"),
        *_places(spec),
        *_hugging_face(spec),
        *deepspeed_check.check(spec),
        *template_check.check(spec.template, own_script=spec.entrypoint is not None),
        *scheduling_check.check(spec.scheduling, spec.template),
    )


def _name(name: str) -> Iterator[Problem]:
    if len(name) > MAX_NAME or not re.fullmatch(NAME_PATTERN, name):
        yield Problem("metadata.name", name, NAME_RULE, "Create the job under another name")


def _rules(record: Record, path: str) -> Iterator[Problem]:
    """Violations of the rules that stand beside the records, outermost first."""
    for rule in record.rules:
        if not rule.holds(record):
            where = f"{path}.{rule.field}" if rule.field else path
            yield Problem(where, _value_at(record, rule.field), rule.message, f"kubectl explain ltj.{where} says more")
    for field, info in type(record).model_fields.items():
        inner = getattr(record, field)
        if isinstance(inner, Record):
            yield from _rules(inner, f"{path}.{info.alias}")


def _value_at(record: Record, path: str) -> Any:
    value: Any = record.model_dump(mode="json", by_alias=True, exclude_none=True)
    for key in path.split(".") if path else ():
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _places(spec: JobSpec) -> Iterator[Problem]:
    for field, place in places.local(spec).items():
        try:
            uris.claim_of(place)
        except ValueError as error:
            yield Problem(f"spec.{field}", place, str(error), "Give a path, file:///path or pvc://claim/path")
    for index, glob in enumerate(spec.data.include if spec.data else ()):
        if glob.startswith("/") or ".." in glob.split("/"):
            yield Problem(f"spec.data.include[{index}]", glob, "it leaves data.source", "Give a glob relative to it")


def _hugging_face(spec: JobSpec) -> Iterator[Problem]:
    config = spec.model.config if spec.model else None
    if config is None:
        return
    path = "spec.model.config"
    if not isinstance(config.get("model_type"), str):
        yield Problem(path, sorted(config), "model_type is missing", "Say which architecture it is, such as llama")
    width, heads = config.get("hidden_size"), config.get("num_attention_heads")
    if isinstance(width, int) and isinstance(heads, int) and "head_dim" not in config and heads and width % heads:
        yield Problem(
            f"{path}.hidden_size", width, f"it is not a multiple of num_attention_heads ({heads})", "Change one of them"
        )


def _from_pydantic(error: ErrorDetails, raw: Mapping[str, Any]) -> Problem:
    path = "spec"
    value: Any = raw
    for part in error["loc"]:
        if isinstance(value, Mapping) and isinstance(part, str):
            value, path = value.get(part), f"{path}.{part}"
        elif isinstance(value, Sequence) and not isinstance(value, str) and isinstance(part, int):
            value, path = value[part], f"{path}[{part}]"
    if error["type"] == "extra_forbidden":
        parent, _, key = path.rpartition(".")
        return unknown_key(parent, key, value, _known_keys(error["loc"][:-1]), parent)
    message = "it is required" if error["type"] == "missing" else error["msg"]
    explain = re.sub(r"\[\d+\]", "", path)
    return Problem(path, value, message, f"kubectl explain ltj.{explain} says what may stand here")


def _known_keys(location: Sequence[str | int]) -> list[str]:
    """The fields of the record at `location` in a spec."""
    record: Any = JobSpec
    for part in location:
        fields = {info.alias: info.annotation for info in record.model_fields.values()}
        candidates = [fields.get(str(part)), *getattr(fields.get(str(part)), "__args__", ())]
        record = next((each for each in candidates if isinstance(each, type) and issubclass(each, Record)), record)
    return [str(info.alias) for info in record.model_fields.values()]
