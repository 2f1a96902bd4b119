"""A thin copy of some objects, kept up to date by list and watch.

Keeps what `project` makes of each object and nothing else. Guarantee: after `synced`, every change on the server
reaches `on_change` in the end, also deletions that happened while the watch was down (a relist finds the missing
ones), and never an older version after a newer one. Several changes of an object may arrive as one.

Versions are compared as integers, as Kubernetes' API conventions allow for objects of one resource.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from llmtrain_operator.cluster.client import Client, Gone, error_of
from llmtrain_operator.cluster.resources import Resource, key_of
from llmtrain_operator.ports import Rejected, Unavailable

log = logging.getLogger(__name__)

T = TypeVar("T")

_PAGE: Final = 250
_WATCH_SECONDS: Final = 300
_BACKOFF_FIRST: Final = 0.2
_BACKOFF_LIMIT: Final = 10.0
_REJECTED_LIMIT: Final = 60.0
_RELIST_AFTER_FAILURES: Final = 5


@dataclass(slots=True)
class _Entry(Generic[T]):
    version: int
    item: T


class Reflector(Generic[T]):
    """Objects of one resource in one namespace (or all, if empty) that match a label selector, by their key.

    `project` gets the raw object and returns what to keep, None to leave the object out. It must not raise.
    `on_change(key, old, new)` runs between two awaits, must be quick, and sees the new state already stored.
    With `optional`, a server that refuses the list counts as synced with nothing, and is asked again in the background.
    """

    def __init__(
        self,
        client: Client,
        resource: Resource,
        project: Callable[[Mapping[str, Any]], T | None],
        on_change: Callable[[str, T | None, T | None], None],
        *,
        namespace: str = "",
        selector: str = "",
        optional: bool = False,
    ) -> None:
        self.synced = asyncio.Event()
        self._client, self._resource, self._namespace = client, resource, namespace
        self._project, self._on_change = project, on_change
        self._query = {"labelSelector": selector} if selector else {}
        self._optional = optional
        self._entries: dict[str, _Entry[T]] = {}
        self._version = 0  # everything up to here has been seen
        self._must_list = True

    def get(self, key: str) -> T | None:
        """The newest known projection of an object, None if it does not exist."""
        entry = self._entries.get(key)
        return entry.item if entry else None

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def absorb(self, raw: Mapping[str, Any]) -> None:
        """Take in the answer of an own write, so that the next read sees it without waiting for the watch."""
        # Up to `_version` the watch has told everything, perhaps even that the object is gone again.
        if _version_of(raw) > self._version:
            self._store(raw)

    async def refresh(self) -> None:
        """Return when everything that the server knew at the call is known here, however far behind the watch is."""
        version = await self._merge()
        self._version = max(self._version, version)

    async def run(self) -> None:
        """List and watch until cancelled."""
        failures = 0
        while True:
            try:
                if self._must_list:
                    await self._list()
                async with aclosing(self._watch()) as events:
                    async for event in events:
                        self._take(event)
                        failures = 0
            except (Rejected, Unavailable) as error:
                failures += 1
                # A version from before the server was restored from a backup is never served again: start over.
                self._must_list |= isinstance(error, Gone) or failures % _RELIST_AFTER_FAILURES == 0
                if self._optional and isinstance(error, Rejected):
                    self.synced.set()
                self._explain(error, failures)
                await asyncio.sleep(_backoff(failures, rejected=isinstance(error, Rejected)))

    async def _list(self) -> None:
        self._version = await self._merge(anew=True)
        self._must_list = False
        self.synced.set()

    async def _merge(self, *, anew: bool = False) -> int:
        """Take in a complete list; returns its version. `anew`: no watch is running that could be ahead of it."""
        seen: set[str] = set()
        query: dict[str, str | int] = {**self._query, "limit": _PAGE}
        while True:
            page = await self._client.request("list", self._resource, self._namespace, query=query)
            version = _version_of(page)
            if anew and version < self._version:
                self._forget_versions()
            for raw in page["items"]:
                seen.add(key_of(raw))
                self._store(raw)
            query["continue"] = page["metadata"].get("continue", "")
            if not query["continue"]:
                break
        for key in [key for key, entry in self._entries.items() if key not in seen]:
            self._remove(key, version)
        return version

    async def _watch(self) -> AsyncGenerator[Mapping[str, Any], None]:
        query: dict[str, str | int] = {
            **self._query,
            "resourceVersion": self._version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": _WATCH_SECONDS + random.randrange(60),  # so that not all watches end together
        }
        silent = True
        async with aclosing(self._client.watch(self._resource, self._namespace, query=query)) as events:
            async for event in events:
                silent = False
                yield event
        if silent:
            raise Unavailable("the watch ended without a single event or bookmark")

    def _take(self, event: Mapping[str, Any]) -> None:
        kind, raw = event["type"], event["object"]
        if kind == "ERROR":
            raise error_of(int(raw.get("code", 500)), str(raw.get("message", raw)))
        if kind == "DELETED":
            self._remove(key_of(raw), _version_of(raw))
        elif kind != "BOOKMARK":
            self._store(raw)
        self._version = max(self._version, _version_of(raw))

    def _store(self, raw: Mapping[str, Any]) -> None:
        key, version = key_of(raw), _version_of(raw)
        entry = self._entries.get(key)
        if entry and entry.version >= version:
            return
        item = self._project(raw)
        if item is None:
            self._remove(key, version)
            return
        self._entries[key] = _Entry(version, item)
        old = entry.item if entry else None
        if item != old:
            self._on_change(key, old, item)

    def _remove(self, key: str, version: int) -> None:
        """Drop the object as of `version`; what is newer was absorbed meanwhile and stays."""
        entry = self._entries.get(key)
        if entry and entry.version <= version:
            del self._entries[key]
            self._on_change(key, entry.item, None)

    def _forget_versions(self) -> None:
        """The server's history is another one (etcd restored): its versions say nothing about ours."""
        self._version = 0
        for entry in self._entries.values():
            entry.version = 0

    def _explain(self, error: Exception, failures: int) -> None:
        if failures & (failures - 1) == 0:  # the 1st, 2nd, 4th, 8th, ... in a row
            level = logging.INFO if self._optional or isinstance(error, Gone) else logging.WARNING
            where = f" in namespace {self._namespace}" if self._namespace else ""
            log.log(level, "watching %s%s: %s; trying again", self._resource.plural, where, error)


def _version_of(raw: Mapping[str, Any]) -> int:
    return int(raw["metadata"].get("resourceVersion") or 0)


def _backoff(failures: int, *, rejected: bool) -> float:
    """Seconds to wait after `failures` in a row: doubling, with jitter so that not all clients come back together."""
    limit = _REJECTED_LIMIT if rejected else _BACKOFF_LIMIT
    return min(limit, _BACKOFF_FIRST * (1 << min(failures - 1, 16))) * random.uniform(0.5, 1.0)
