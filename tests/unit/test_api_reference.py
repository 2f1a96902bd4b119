"""docs/api.md says what the API server has."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from llmtrain_operator.api.crd import crd
from llmtrain_operator.api.reference import CONDITIONS, markdown
from llmtrain_operator.conditions import ConditionType

ROOT = Path(__file__).parents[2]


def test_the_file_is_current():
    """`make docs` writes it."""
    assert (ROOT / "docs/api.md").read_text() == markdown()


def fields(path, schema):
    """Every field of the schema with the section that it must be in."""
    for name, field in schema.get("properties", {}).items():
        yield path, name, field.get("description")
        yield from fields(f"{path}.{name}", field)
        yield from fields(f"{path}.{name}[]", field.get("items", {}))


def test_every_field_is_in_its_section_with_a_meaning():
    """Spec and status alike."""
    schema = crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    sections = {part.partition("\n")[0]: part for part in markdown().split("\n## ")}
    for part in ("spec", "status"):
        for path, name, meaning in fields(part, schema[part]):
            rows = [line for line in sections[path].splitlines() if line.split("|")[1:2] and name in line.split("|")[1]]
            assert rows, f"{path}.{name}"
            assert meaning, f"{path}.{name} has no description"


def test_every_condition_is_explained():
    """And nothing that there is not."""
    assert set(CONDITIONS) == set(get_args(ConditionType))
