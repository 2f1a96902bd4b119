"""The two sockets and what passes between them: reports from agents inwards, directives outwards.

Level-triggered on both sides: an agent that connects is told the directive that holds, a controller that connects is
told all agents. Sending never waits for a slow peer (`broadcast` buffers, keep-alive pings end dead connections), so
one stuck agent delays nobody. Keeps no state on disk; after a restart agents and controller say everything again.
"""

from __future__ import annotations

import asyncio
import contextlib
import http
import logging
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final
from weakref import WeakKeyDictionary

from websockets.asyncio.server import Server, ServerConnection, broadcast, serve, unix_serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from llmtrain_operator.contract import wire
from llmtrain_operator.coordinator.auth import (
    AuthenticationUnavailable,
    Authenticator,
    Identity,
    Unauthenticated,
    bearer,
    contradiction,
)
from llmtrain_operator.coordinator.bundle import key_of, unpack
from llmtrain_operator.coordinator.directives import Directives
from llmtrain_operator.coordinator.sessions import LagMeter, Session, differs_in_substance, expired
from llmtrain_operator.coordinator.telemetry import Telemetry

log = logging.getLogger(__name__)

TICK: Final = 0.25
PROGRESS_INTERVAL: Final = 1.0
"""Seconds between two updates to the controller that differ in progress figures only."""
RETENTION: Final = 600.0
"""Seconds that a lost agent is remembered, so that a controller which comes back learns of it."""
MAX_REPORT: Final = 256 * 1024
MAX_PUBLISH: Final = 64 * 2**20
POLICY_VIOLATION: Final = 1008


class Coordinator:
    """Sessions of agents and links of controllers, in one event loop."""

    def __init__(self, authenticator: Authenticator, heartbeat_deadline: float, telemetry: Telemetry) -> None:
        self._authenticator = authenticator
        self._deadline = heartbeat_deadline
        self._telemetry = telemetry
        self._sessions: dict[str, Session] = {}
        self._identities: WeakKeyDictionary[ServerConnection, Identity] = WeakKeyDictionary()
        self._controllers: set[ServerConnection] = set()
        self._directives = Directives()

    @contextlib.asynccontextmanager
    async def serving(self, host: str, port: int, tls: ssl.SSLContext | None, control: Path) -> AsyncIterator[Server]:
        """Both sockets, open; without `tls` agents talk plainly, for loopback only.

        Yields the agents' server (its bound port is `server.sockets[0].getsockname()[1]`).
        """
        _make_room(control)
        watch = asyncio.create_task(self._watch())
        agents = serve(
            self._serve_agent,
            host,
            port,
            ssl=tls,
            process_request=self._authenticate,
            compression=None,
            max_size=MAX_REPORT,
            ping_interval=None,  # heartbeats tell more
            close_timeout=2,
        )
        controllers = unix_serve(self._serve_controller, str(control), compression=None, max_size=MAX_PUBLISH)
        try:
            async with controllers, agents as server:
                yield server
        finally:
            watch.cancel()

    # Agents

    async def _authenticate(self, connection: ServerConnection, request: Request) -> Response | None:
        try:
            self._identities[connection] = await self._authenticator.identify(
                bearer(request.headers.get("Authorization"))
            )
        except Unauthenticated as error:
            return self._refuse(connection, http.HTTPStatus.UNAUTHORIZED, str(error))
        except AuthenticationUnavailable as error:
            return self._refuse(connection, http.HTTPStatus.SERVICE_UNAVAILABLE, str(error))
        return None

    def _refuse(self, connection: ServerConnection, status: http.HTTPStatus, text: str) -> Response:
        self._telemetry.refused.inc()
        log.warning("refused %s: %s", connection.remote_address, text)
        return connection.respond(status, text + "\n")

    async def _serve_agent(self, connection: ServerConnection) -> None:
        session = self._admit(self._identities[connection], connection)
        detail = "the connection ended"
        try:
            async for text in connection:
                if complaint := self._receive(session, text):
                    detail = complaint
                    log.warning("closing %s: %s", session.identity.pod, complaint)
                    await connection.close(POLICY_VIOLATION, complaint[:120])
        except ConnectionClosed as error:
            detail = f"the connection broke: {error}"
        finally:
            self._dismiss(session, connection, detail)

    def _admit(self, identity: Identity, connection: ServerConnection) -> Session:
        former = self._sessions.get(identity.uid)
        if former and former.connection:
            former.connection.transport.abort()  # the newest connection of a pod is the true one
        session = Session(identity, connection, asyncio.get_running_loop().time(), former.report if former else None)
        self._sessions[identity.uid] = session  # the controller hears of it with its first report
        if directive := self._directives.of(identity.uid):
            broadcast([connection], wire.encode(directive))
        return session

    def _receive(self, session: Session, text: str | bytes) -> str | None:
        """Take in a report; returns a complaint if the connection is to be closed."""
        try:
            report = wire.decode(wire.Report, text)
        except wire.WireError as error:
            return str(error)
        if complaint := contradiction(session.identity, report):
            return complaint
        now = asyncio.get_running_loop().time()
        self._telemetry.gaps.observe(now - session.heard)
        session.heard = now
        urgent = differs_in_substance(session.report, report)
        session.untold |= report != session.report or not session.spoke
        session.spoke = True
        session.report = report
        if session.untold and (urgent or now - session.told >= PROGRESS_INTERVAL):
            self._tell(session)
        return None

    def _dismiss(self, session: Session, connection: ServerConnection, detail: str) -> None:
        if session.connection is not connection or self._sessions.get(session.identity.uid) is not session:
            return  # replaced by a newer connection, or already given up
        session.connection = None
        session.detail = detail
        self._tell(session)

    # Controllers

    async def _serve_controller(self, connection: ServerConnection) -> None:
        self._controllers.add(connection)
        try:
            for session in self._sessions.values():
                if session.report:
                    broadcast([connection], wire.encode(session.update()))
            async for text in connection:
                try:
                    publish = unpack(text)
                except wire.WireError as error:
                    log.warning("the controller sent something unknown: %s", error)
                    continue
                self._pass_on(publish)
        except ConnectionClosed as error:
            log.info("a controller left: %s", error)
        finally:
            self._controllers.discard(connection)

    def _pass_on(self, publish: wire.Publish) -> None:
        texts: dict[tuple[str, str, int | None], str] = {}  # members of one round are all told the same
        for uid, directive in self._directives.replace(publish).items():
            session = self._sessions.get(uid)
            if session is None or session.connection is None:
                continue
            key = key_of(directive)
            text = texts.get(key) or texts.setdefault(key, wire.encode(directive))
            broadcast([session.connection], text)

    def _tell(self, session: Session) -> None:
        if session.report is None:
            return  # its job is not known, so nobody could do anything about it
        session.told = asyncio.get_running_loop().time()
        session.untold = False
        broadcast(self._controllers, wire.encode(session.update()))

    # Time

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        meter = LagMeter(window=2 * self._deadline)
        then = loop.time()
        while True:
            await asyncio.sleep(TICK)
            now = loop.time()
            lag = meter.note(now, max(0.0, now - then - TICK))
            then = now
            self._tick(now, lag)

    def _tick(self, now: float, lag: float) -> None:
        connected = {uid: session for uid, session in self._sessions.items() if session.connection}
        heard = {uid: session.heard for uid, session in connected.items()}
        for uid in expired(now, heard, lag, self._deadline):
            self._give_up(connected[uid], now)
        for uid, session in list(self._sessions.items()):
            if session.untold and now - session.told >= PROGRESS_INTERVAL:
                self._tell(session)
            if session.connection is None and now - session.heard > RETENTION:
                del self._sessions[uid]
        self._telemetry.agents.set(len(connected))
        self._telemetry.lag.set(lag)

    def _give_up(self, session: Session, now: float) -> None:
        self._telemetry.expired.inc()
        connection, session.connection = session.connection, None
        session.detail = f"no heartbeat for {now - session.heard:.1f} s"
        log.warning("lost %s: %s", session.identity.pod, session.detail)
        self._tell(session)
        if connection:
            connection.transport.abort()


def _make_room(control: Path) -> None:
    """Prepare for a socket at `control` that only this user can reach."""
    control.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    control.unlink(missing_ok=True)  # left by a predecessor that was killed
