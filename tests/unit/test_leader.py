"""When a leader lets another lead of its own accord."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from llmtrain_operator import leader


@pytest.mark.parametrize("there", [True, False], ids=["with", "without"])
async def test_a_leader_without_a_coordinator_does_not_go_on(monkeypatch, there) -> None:
    """It could not hear agents; the replica beside a coordinator that works can."""
    monkeypatch.setattr(leader, "COORDINATOR_LIMIT", 1.5)
    waiting = asyncio.create_task(leader._until_alone(SimpleNamespace(connected=there)))
    done, _ = await asyncio.wait([waiting], timeout=3)
    assert bool(done) is not there
    waiting.cancel()
