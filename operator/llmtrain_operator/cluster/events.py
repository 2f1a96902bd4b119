"""Events on jobs: posted in the background, repeats counted on one object, slowed down rather than flooding.

Nothing depends on an Event: under pressure or without an API server the oldest waiting ones are dropped.
"""

from __future__ import annotations

import asyncio
import logging
import os
import uuid
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from llmtrain_operator.cluster.client import Client, NotFound, TokenBucket
from llmtrain_operator.cluster.resources import EVENTS
from llmtrain_operator.contract import names
from llmtrain_operator.ports import Conflict, Rejected, Unavailable

log = logging.getLogger(__name__)

_MESSAGE_LIMIT: Final = 1000  # the API server refuses more than 1024
_WAITING_LIMIT: Final = 1000
_REMEMBERED: Final = 2000
_PER_SECOND: Final = 10.0
_BURST: Final = 100.0

_Identity = tuple[str, str, str]  # job UID, reason, message


@dataclass(slots=True)
class _Story:
    """One thing that happened to a job, `count` times so far, of which `name` (if posted) already tells some."""

    job: Mapping[str, str]
    kind: str
    first: str
    last: str
    count: int = 0
    name: str = ""


class EventPoster:
    """Takes events at any rate and posts them at a bounded one while `run` runs."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._bucket = TokenBucket(_PER_SECOND, _BURST)
        self._stories: OrderedDict[_Identity, _Story] = OrderedDict()
        self._waiting: OrderedDict[_Identity, None] = OrderedDict()
        self._wake = asyncio.Event()

    def post(self, job: Mapping[str, Any], reason: str, message: str, *, warning: bool = False) -> None:
        """Queue an event on `job`. Never blocks; a repeat of a known one only raises its count."""
        metadata, now = job["metadata"], _timestamp()
        identity = (metadata["uid"], reason, message[:_MESSAGE_LIMIT])
        story = self._stories.pop(identity, None)
        if story is None:
            about = {key: metadata[key] for key in ("namespace", "name", "uid")}
            story = _Story(about, "Warning" if warning else "Normal", first=now, last=now)
        story.count += 1
        story.last = now
        self._stories[identity] = story
        self._waiting[identity] = None
        if len(self._waiting) > _WAITING_LIMIT:
            self._waiting.popitem(last=False)
        if len(self._stories) > _REMEMBERED:
            forgotten, _ = self._stories.popitem(last=False)
            self._waiting.pop(forgotten, None)
        self._wake.set()

    def forget(self) -> None:
        """Drop what is queued: another tells the story from here on."""
        self._waiting.clear()
        self._stories.clear()

    async def run(self) -> None:
        """Post what is queued until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                await self._bucket.acquire()
                if not self._waiting:
                    break
                identity, _ = self._waiting.popitem(last=False)
                if story := self._stories.get(identity):  # forgotten meanwhile, if many came while the server was away
                    await self._tell(identity, story)

    async def _tell(self, identity: _Identity, story: _Story) -> None:
        try:
            if story.name and await self._recount(story):
                return
            await self._create(identity, story)
        except Unavailable as error:
            log.info("event %s of %s not posted: %s", identity[1], story.job["name"], error)
            self._waiting.setdefault(identity)
            await asyncio.sleep(1)
        except (Conflict, Rejected) as error:  # the namespace is going away, say
            log.info("event %s of %s refused: %s", identity[1], story.job["name"], error)

    async def _recount(self, story: _Story) -> bool:
        body = {"count": story.count, "lastTimestamp": story.last}
        try:
            await self._client.request("patch", EVENTS, story.job["namespace"], story.name, body=body)
        except NotFound:  # events live for an hour
            return False
        return True

    async def _create(self, identity: _Identity, story: _Story) -> None:
        _, reason, message = identity
        name = f"{story.job['name']}.{uuid.uuid4().hex[:16]}"
        body = {
            "apiVersion": EVENTS.api_version,
            "kind": EVENTS.kind,
            "metadata": {"name": name, "namespace": story.job["namespace"]},
            "involvedObject": {"apiVersion": names.API_VERSION, "kind": names.KIND, **story.job},
            "type": story.kind,
            "reason": reason,
            "message": message,
            "count": story.count,
            "firstTimestamp": story.first,
            "lastTimestamp": story.last,
            "source": {"component": names.FIELD_MANAGER},
            "reportingComponent": names.FIELD_MANAGER,
            "reportingInstance": os.environ.get("HOSTNAME", names.FIELD_MANAGER),
        }
        await self._client.request("create", EVENTS, story.job["namespace"], body=body)
        story.name = name


def _timestamp() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
