"""What a replica does while it leads, and only then: it reconciles, and talks to its coordinator.

A standby has everything else: warm caches, a running coordinator, a watch of the jobs. A term begins with a fresh look
at jobs and pods, since the watch of a standby may be behind what the last leader wrote, and with nobody known to be
silent: agents have their time to find the new coordinator (`agents.py`). What is in memory ends with the term; all that
the next leader needs is in the jobs' status.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Final

from llmtrain_operator.cluster.cluster import Cluster
from llmtrain_operator.cluster.lease import Lease
from llmtrain_operator.controller import Controller
from llmtrain_operator.link import CoordinatorLink
from llmtrain_operator.manifests import Settings
from llmtrain_operator.metrics import Metrics
from llmtrain_operator.ports import Rejected, Unavailable
from llmtrain_operator.workqueue import WorkQueue

log = logging.getLogger(__name__)

RESYNC: Final = 30.0
"""Seconds after which every job gets a pass even if nothing seemed to happen."""
COORDINATOR_LIMIT: Final = 20.0
"""Seconds without a coordinator beside it after which a leader lets another replica lead: it cannot hear agents."""
_RETRY: Final = 0.5


class Leader:
    """Runs terms, one after the other. `wake` may be called at any time; outside a term it does nothing."""

    def __init__(
        self, cluster: Cluster, lease: Lease, settings: Settings, control_socket: Path, metrics: Metrics
    ) -> None:
        self._cluster, self._lease, self._settings = cluster, lease, settings
        self._socket, self._metrics = control_socket, metrics
        self._queue: WorkQueue | None = None

    def wake(self, key: str, delay: float = 0.0) -> None:
        """Have a pass over the job in `delay` seconds."""
        if self._queue:
            self._queue.add(key, delay)

    async def lead(self) -> None:
        """One term, until cancelled. Returns when another replica should lead; raises what ended a part of it."""
        await self._refresh()
        link = CoordinatorLink(
            self._socket,
            lambda update: controller.agent_changed(update),
            lambda connected: controller.link_changed(connected),
            lambda: self._lease.until,
        )
        controller = Controller(self._cluster, link, self._settings, self._metrics, self.wake)
        self._queue = WorkQueue(controller.reconcile, on_pass=self._metrics.observe_pass)
        self._metrics.begin_term(self._queue.depth)
        try:
            await self._work(link, self._queue)
        finally:
            self._queue = None
            self._metrics.end_term()
            self._cluster.step_down()

    async def _work(self, link: CoordinatorLink, queue: WorkQueue) -> None:
        async with asyncio.TaskGroup() as group:
            parts = [group.create_task(part) for part in (link.run(), queue.run(), self._resync())]
            await _until_alone(link)
            log.error("no coordinator for %.0f s: another replica should lead", COORDINATOR_LIMIT)
            for part in parts:
                part.cancel()

    async def _refresh(self) -> None:
        while True:
            try:
                await self._cluster.refresh()
            except (Rejected, Unavailable) as error:
                log.warning("cannot see what there is to lead: %s", error)
                await asyncio.sleep(_RETRY)
            else:
                return

    async def _resync(self) -> None:
        while True:
            for key in self._cluster.known():
                self.wake(key)
            await asyncio.sleep(RESYNC)


async def _until_alone(link: CoordinatorLink) -> None:
    """Return when the coordinator has been away for too long."""
    loop = asyncio.get_running_loop()
    there = loop.time()
    while loop.time() - there < COORDINATOR_LIMIT:
        await asyncio.sleep(1)
        if link.connected:
            there = loop.time()
