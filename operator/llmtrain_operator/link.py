"""The controller's end of the control socket to the coordinator, for one term of leadership.

Says for how long the controller certainly leads, once a second and right after connecting. Keeps the newest `Publish`
of every job and says them all again on each connection, so that a coordinator that was restarted knows what its
predecessor knew. Updates about agents come as callbacks; the coordinator tells everything it knows right after
connecting, in any order. Single-threaded: all methods belong to one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

from websockets.asyncio.client import ClientConnection, unix_connect
from websockets.exceptions import WebSocketException

from llmtrain_operator.clock import boot_time
from llmtrain_operator.contract import codec, wire
from llmtrain_operator.coordinator.bundle import Lead, pack, same

log = logging.getLogger(__name__)

BEAT: Final = 1.0
"""Seconds between two words on leadership."""
ALONE: Final = 60.0
"""Seconds for which a controller that nobody competes with says that it leads."""
RETRY: Final = 0.2
"""Seconds between attempts: the socket is local, so an attempt costs nothing."""
MAX_MESSAGE: Final = 2**20


class CoordinatorLink:
    """A connection to the coordinator that is always there or being re-made.

    `on_update` is called with every `AgentUpdate`, `on_connection` with True and False as the link comes and goes.
    Neither may block. `leads_until` gives the time, on `boot_time`'s clock, up to which this controller leads.
    """

    def __init__(
        self,
        socket: Path,
        on_update: Callable[[wire.AgentUpdate], None],
        on_connection: Callable[[bool], None] = lambda _connected: None,
        leads_until: Callable[[], float] = lambda: boot_time() + ALONE,
    ) -> None:
        self._socket = socket
        self._on_update = on_update
        self._on_connection = on_connection
        self._leads_until = leads_until
        self._said: dict[str, wire.Publish] = {}
        self._unsent: set[str] = set()
        self._news = asyncio.Event()
        self._connected = False

    @property
    def connected(self) -> bool:
        """Whether the coordinator is there. While it is not, agents' silence means nothing."""
        return self._connected

    def publish(self, publish: wire.Publish) -> None:
        """Say a job's directives, now or as soon as there is a connection. Saying the same again costs nothing.

        Empty directives forget the job.
        """
        said = self._said.get(publish.job)
        if said and same(said, publish):
            return
        self._said[publish.job] = publish
        self._unsent.add(publish.job)
        self._news.set()

    async def run(self) -> None:
        """Keep the link up until cancelled."""
        while True:
            try:
                async with unix_connect(
                    str(self._socket),
                    uri="ws://coordinator/",
                    compression=None,
                    max_size=MAX_MESSAGE,
                    proxy=None,
                    close_timeout=1,
                ) as connection:
                    await self._converse(connection)
            except (OSError, WebSocketException) as error:
                if self._connected:
                    log.warning("lost the coordinator: %s", error)
            finally:
                self._change(connected=False)
            await asyncio.sleep(RETRY)

    async def _converse(self, connection: ClientConnection) -> None:
        self._unsent = set(self._said)
        self._change(connected=True)
        self._news.set()
        sender = asyncio.create_task(self._send(connection))
        try:
            async for text in connection:
                self._receive(text)
        finally:
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)

    async def _send(self, connection: ClientConnection) -> None:
        while True:
            await connection.send(codec.encode(Lead(self._leads_until())))
            self._news.clear()
            while self._unsent:
                job = self._unsent.pop()
                publish = self._said[job]
                await connection.send(pack(publish))
                if not publish.directives and self._said.get(job) is publish:
                    del self._said[job]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(BEAT):
                    await self._news.wait()

    def _receive(self, text: str | bytes) -> None:
        try:
            update = codec.decode(wire.AgentUpdate, text)
        except codec.WireError as error:
            log.warning("the coordinator sent something unknown: %s", error)
            return
        self._on_update(update)

    def _change(self, *, connected: bool) -> None:
        if connected != self._connected:
            self._connected = connected
            self._on_connection(connected)
