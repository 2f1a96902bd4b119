"""Events under pressure."""

from __future__ import annotations

import asyncio

from llmtrain_operator.cluster.events import EventPoster
from llmtrain_operator.ports import Unavailable

JOB = {"metadata": {"namespace": "d", "name": "j", "uid": "u"}}


class Away:
    """An API server that is away, and while it is, much else happens."""

    def __init__(self) -> None:
        self.poster = EventPoster(self)
        self.asked = 0

    async def request(self, *_: object, **__: object) -> None:
        self.asked += 1
        if self.asked == 1:
            for number in range(3000):
                self.poster.post(JOB, "Noise", f"number {number}")
        raise Unavailable("no route to host")


async def test_an_event_that_was_forgotten_while_it_was_being_posted_does_no_harm(monkeypatch) -> None:
    """Too many events cost the oldest ones, never the operator."""
    nap = asyncio.sleep
    monkeypatch.setattr(asyncio, "sleep", lambda _: nap(0))  # between attempts, and for a token
    away = Away()
    away.poster.post(JOB, "First", "is being posted when it is forgotten")
    running = asyncio.create_task(away.poster.run())
    while away.asked < 2000 and not running.done():  # twice through all that may wait
        await nap(0)
    assert not running.done()
    running.cancel()
