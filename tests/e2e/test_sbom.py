"""The bill of materials of the images that were built."""

from __future__ import annotations

import json

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from devcluster.images import sbom


def test_both_images_have_a_valid_document(tmp_path) -> None:
    """It keeps to the standard's schema, and names what everyone would look for first."""
    sbom.main(tmp_path)
    known = {"operator": {"kopf", "kubernetes", "libssl3"}, "trainer": {"torch", "deepspeed", "obstore", "libssl3"}}
    for target, some in known.items():
        text = (tmp_path / f"{target}.cdx.json").read_text()
        assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
        assert some <= {component["name"] for component in json.loads(text)["components"]}
