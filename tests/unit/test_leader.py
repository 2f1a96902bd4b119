"""When a leader lets another lead of its own accord."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from llmtrain_operator import leader


async def test_a_new_leader_looks_after_what_was_left_while_nobody_led() -> None:
    """A job that was deleted meanwhile is no job any more, but its pods may be there."""
    cluster = SimpleNamespace(jobs=lambda: ["d/there"], known=lambda: {"d/there", "d/gone"})
    leading = leader.Leader(cluster, *[None] * 4)
    woken = []
    leading._queue = SimpleNamespace(add=lambda key, delay: woken.append((key, delay)))
    resync = asyncio.create_task(leading._resync())
    await asyncio.sleep(0)
    resync.cancel()
    assert sorted(woken) == [("d/gone", 0.0), ("d/there", 0.0)]


@pytest.mark.parametrize("there", [True, False], ids=["with", "without"])
async def test_a_leader_without_a_coordinator_does_not_go_on(monkeypatch, there) -> None:
    """It could not hear agents; the replica beside a coordinator that works can."""
    monkeypatch.setattr(leader, "COORDINATOR_LIMIT", 1.5)
    waiting = asyncio.create_task(leader._until_alone(SimpleNamespace(connected=there)))
    done, _ = await asyncio.wait([waiting], timeout=3)
    assert bool(done) is not there
    waiting.cancel()
