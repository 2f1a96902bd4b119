"""Writes whose answer depends on what happens in between."""

from __future__ import annotations

from typing import Any

import pytest

from llmtrain_operator.cluster import writes
from llmtrain_operator.cluster.client import NotFound
from llmtrain_operator.ports import Conflict


class Fleeting:
    """A server on which the object is there for the creation, and gone at the look that follows."""

    async def request(self, verb: str, *_: Any, **__: Any) -> dict[str, Any]:
        raise Conflict("pods x-0-1 already exists") if verb == "create" else NotFound("pods x-0-1 not found")


async def test_an_object_that_goes_at_this_very_moment_is_a_conflict() -> None:
    """To be tried again at once; a refusal would hold the member back for half a minute."""
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x-0-1", "namespace": "d"}}
    with pytest.raises(Conflict, match="was there a moment ago"):
        await writes.create(Fleeting(), pod)
