"""The controller's end of the control socket to the coordinator.

Keeps the newest `Publish` of every job and says them all again on each connection, so that a coordinator that was
restarted knows what its predecessor knew. Updates about agents come as callbacks; the coordinator tells everything it
knows right after connecting, in any order. Single-threaded: all methods belong to one event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

from websockets.asyncio.client import ClientConnection, unix_connect
from websockets.exceptions import WebSocketException

from llmtrain_operator.contract import wire
from llmtrain_operator.coordinator.bundle import pack, same

log = logging.getLogger(__name__)

RETRY: Final = 0.2
"""Seconds between attempts: the socket is local, so an attempt costs nothing."""
MAX_MESSAGE: Final = 2**20


class CoordinatorLink:
    """A connection to the coordinator that is always there or being re-made.

    `on_update` is called with every `AgentUpdate`, `on_connection` with True and False as the link comes and goes.
    Neither may block.
    """

    def __init__(
        self,
        socket: Path,
        on_update: Callable[[wire.AgentUpdate], None],
        on_connection: Callable[[bool], None] = lambda _connected: None,
    ) -> None:
        self._socket = socket
        self._on_update = on_update
        self._on_connection = on_connection
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
                    str(self._socket), uri="ws://coordinator/", compression=None, max_size=MAX_MESSAGE, proxy=None
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
            await self._news.wait()
            self._news.clear()
            while self._unsent:
                job = self._unsent.pop()
                publish = self._said[job]
                await connection.send(pack(publish))
                if not publish.directives and self._said.get(job) is publish:
                    del self._said[job]

    def _receive(self, text: str | bytes) -> None:
        try:
            update = wire.decode(wire.AgentUpdate, text)
        except wire.WireError as error:
            log.warning("the coordinator sent something unknown: %s", error)
            return
        self._on_update(update)

    def _change(self, *, connected: bool) -> None:
        if connected != self._connected:
            self._connected = connected
            self._on_connection(connected)
