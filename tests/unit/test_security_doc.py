"""docs/security.md says what is so."""

from __future__ import annotations

import re
from pathlib import Path

from tests.support.chart import CLUSTER_RIGHTS, LEASE_RIGHTS, RIGHTS

TEXT = (Path(__file__).parents[2] / "docs" / "security.md").read_text()


def test_the_rights_that_are_listed_are_those_of_the_chart() -> None:
    """By resource and verb; the chart's own are held to the same list elsewhere."""
    section = TEXT.partition("## The operator's rights")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| ([a-z/, ]+) \| ([a-z, ]+) \|$", section, re.MULTILINE))
    del rows["resource"]
    listed = {name: set(verbs.split(", ")) for names, verbs in rows.items() for name in names.split(", ")}
    assert listed == {resource: verbs for (_, resource), verbs in RIGHTS.items()}
    for (_, resource), verbs in (CLUSTER_RIGHTS | LEASE_RIGHTS).items():
        assert resource.removesuffix("s") in section.lower()
        assert all(verb in section for verb in verbs)
