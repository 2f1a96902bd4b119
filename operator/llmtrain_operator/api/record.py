"""What all API models share: camelCase in YAML, frozen in Python, and rules that the API server and we check alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler
from pydantic.alias_generators import to_camel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema


@dataclass(frozen=True, slots=True)
class Rule:
    """An invariant across the fields of one record, once in CEL for the API server and once in Python.

    The Python form serves `llmtrain validate`, which has no API server at hand; a table test shows that both refuse the
    same specs. `field` (a camelCase path inside the record) is what a violation is reported at.
    """

    cel: str
    message: str
    holds: Callable[[Any], bool]
    field: str = ""

    def as_validation(self) -> dict[str, str]:
        """The entry of `x-kubernetes-validations`."""
        path = {"fieldPath": f".{self.field}"} if self.field else {}
        return {"rule": self.cel, "message": self.message, **path}


class Record(BaseModel):
    """A frozen object of the job's spec; a field that it does not know is an error."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, frozen=True, extra="forbid", use_attribute_docstrings=True
    )
    rules: ClassVar[tuple[Rule, ...]] = ()

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core)
        if cls.rules:
            schema["x-kubernetes-validations"] = [rule.as_validation() for rule in cls.rules]
        return schema


class StatusRecord(Record):
    """A frozen object of the job's status. Unknown fields are dropped: a newer operator may have written it."""

    model_config = ConfigDict(extra="ignore")
