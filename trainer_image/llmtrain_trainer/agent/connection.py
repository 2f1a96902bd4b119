"""The agent's connection to the coordinator: a thread that never makes the agent wait.

Sends the newest report on every change and as a heartbeat, and takes in directives. Looks for the leader among all
replicas (`dialling.py`); the server must hold a certificate of the given CA for the first URL's host, whichever address
it was found at. The token is read anew for each attempt, because the kubelet rotates it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from llmtrain_operator.contract import codec, wire
from llmtrain_trainer.agent.dialling import Dialler

log = logging.getLogger(__name__)

HEARTBEAT: Final = 0.5
FIRST_BACKOFF: Final = 0.2
LAST_BACKOFF: Final = 1.0
"""Seconds between two rounds of dialling while nobody leads: one costs a few packets that are refused."""
STEADY: Final = 5.0
"""Seconds that a connection must have held for the next attempt to be made at once."""
OPEN_TIMEOUT: Final = 5.0
PING: Final = 1.0
PING_TIMEOUT: Final = 6.0
"""Seconds between keep-alives, and until one counts as lost: a leader whose node died is left when it is succeeded."""
MAX_DIRECTIVE: Final = 16 * 2**20


class Connection:
    """Delivers `report()` whenever it is asked to and at least every heartbeat; calls `on_directive` in its thread."""

    def __init__(
        self,
        urls: tuple[str, ...],
        ca: str,
        token_file: Path,
        report: Callable[[], wire.Report],
        on_directive: Callable[[wire.Directive], None],
    ) -> None:
        self._dialler = Dialler(urls)
        self._ca = ca
        self._token_file = token_file
        self._report = report
        self._on_directive = on_directive
        self._loop = asyncio.new_event_loop()
        self._changed = asyncio.Event()
        self._closing = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="coordinator-connection", daemon=True)
        self._alone_since: float | None = time.monotonic()
        self._trouble = ""

    def start(self) -> None:
        """Begin to dial."""
        self._thread.start()

    def wake(self) -> None:
        """The report has changed: send it now. From any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to tell
            self._loop.call_soon_threadsafe(self._changed.set)

    def close(self, timeout: float = 2.0) -> None:
        """Send the last report if the coordinator is there, then end; waits at most `timeout` seconds."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join(timeout)

    @property
    def alone_for(self) -> float:
        """Seconds since the coordinator was last there, 0 while it is."""
        since = self._alone_since
        return 0.0 if since is None else time.monotonic() - since

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._keep_connected())
        finally:
            self._loop.close()

    async def _keep_connected(self) -> None:
        backoff = FIRST_BACKOFF
        while not self._closing.is_set():
            started = time.monotonic()
            try:
                async with await self._dial() as connection:
                    self._arrived(connection)
                    await self._converse(connection)
            except (OSError, WebSocketException, ssl.SSLError) as error:
                self._complain(_words(error))
            finally:
                self._alone_since = self._alone_since or time.monotonic()
            if time.monotonic() - started > STEADY:
                backoff = FIRST_BACKOFF  # it was not one that throws us out again and again
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), backoff * random.uniform(0.5, 1.0))
            backoff = min(LAST_BACKOFF, backoff * 2)

    async def _dial(self) -> ClientConnection:
        token = self._token_file.read_text().strip()
        link = await self._dialler.dial()
        try:
            return await connect(
                self._dialler.url,
                sock=link,
                ssl=ssl.create_default_context(cadata=self._ca) if self._dialler.secure else None,
                additional_headers={"Authorization": f"Bearer {token}"},
                compression=None,
                proxy=None,  # the coordinator is in the cluster, whatever HTTPS_PROXY is meant for
                open_timeout=OPEN_TIMEOUT,
                ping_interval=PING,
                ping_timeout=PING_TIMEOUT,
                close_timeout=1,
                max_size=MAX_DIRECTIVE,
            )
        except BaseException:
            link.close()
            raise

    async def _converse(self, connection: ClientConnection) -> None:
        sender = asyncio.create_task(self._send(connection))
        try:
            async for text in connection:
                try:
                    self._on_directive(codec.decode(wire.Directive, text))
                except codec.WireError as error:
                    log.warning("the coordinator sent something unknown: %s", error)
        finally:
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)

    async def _send(self, connection: ClientConnection) -> None:
        with contextlib.suppress(ConnectionClosed):  # the receiving side tells why
            while not self._closing.is_set():
                self._changed.clear()
                await connection.send(codec.encode(self._report()))
                await self._pause()
            await connection.send(codec.encode(self._report()))
            await connection.close()

    async def _pause(self) -> None:
        """Until the report changes, the end is near, or the next heartbeat is due."""
        waits = [asyncio.create_task(event.wait()) for event in (self._changed, self._closing)]
        await asyncio.wait(waits, timeout=HEARTBEAT, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()

    def _arrived(self, connection: ClientConnection) -> None:
        log.info("connected to the coordinator at %s", connection.remote_address[0])
        self._alone_since = None
        self._trouble = ""

    def _complain(self, trouble: str) -> None:
        if trouble != self._trouble:
            self._trouble = trouble
            log.warning("no coordinator: %s", trouble)


def _words(error: Exception) -> str:
    if isinstance(error, InvalidStatus):
        body = error.response.body or b""
        return f"HTTP {error.response.status_code} {body.decode(errors='replace').strip()}"
    return str(error) or type(error).__name__
