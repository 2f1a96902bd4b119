"""The agents' side of one term of leadership: their connections, what they say and what they are told.

Level-triggered: an agent that connects is told the directive that holds, and each update to the controller is an
agent's whole state. Sending never waits for a slow peer (`broadcast` buffers, keep-alive pings end dead connections),
so one stuck agent delays nobody. What is known here ends with the term: agents say everything again to the next.
"""

from __future__ import annotations

import asyncio
import contextlib
import http
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Final
from weakref import WeakKeyDictionary

from websockets.asyncio.server import ServerConnection, broadcast, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from llmtrain_operator.contract import codec, wire
from llmtrain_operator.coordinator.auth import (
    AuthenticationUnavailable,
    Authenticator,
    Identity,
    Unauthenticated,
    bearer,
    contradiction,
)
from llmtrain_operator.coordinator.bundle import Key, key_of
from llmtrain_operator.coordinator.directives import Directives
from llmtrain_operator.coordinator.keys import with_keys
from llmtrain_operator.coordinator.sessions import LagMeter, Part, Session, differs_in_substance, expired, missed
from llmtrain_operator.coordinator.telemetry import Telemetry

log = logging.getLogger(__name__)

TICK: Final = 0.25
PROGRESS_INTERVAL: Final = 1.0
"""Seconds between two updates to the controller that differ in progress figures only."""
RETENTION: Final = 600.0
"""Seconds that a lost agent is remembered."""
MAX_REPORT: Final = 256 * 1024
POLICY_VIOLATION: Final = 1008
_CLOSING: Final = 0.5


class Term:
    """Sessions of agents, in one event loop. `tell` passes updates on to the controller; `leads` is asked before an
    agent is admitted."""

    def __init__(
        self,
        authenticator: Authenticator,
        heartbeat_deadline: float,
        telemetry: Telemetry,
        tell: Callable[[wire.AgentUpdate], None],
        leads: Callable[[], bool],
        secret: bytes,
    ) -> None:
        self._authenticator = authenticator
        self._deadline = heartbeat_deadline
        self._telemetry = telemetry
        self._tell_controller = tell
        self._leads = leads
        self._secret = secret
        self._sessions: dict[str, Session] = {}
        self._identities: WeakKeyDictionary[ServerConnection, Identity] = WeakKeyDictionary()
        self._directives = Directives()

    @contextlib.asynccontextmanager
    async def serving(self, bound: socket.socket, tls: ssl.SSLContext | None) -> AsyncIterator[None]:
        """Listen on `bound`; at the end all connections are broken off, so that agents look for the next leader."""
        watch = asyncio.create_task(self._watch())
        server = await serve(
            self._serve_agent,
            sock=bound,
            ssl=tls,
            process_request=self._authenticate,
            compression=None,
            max_size=MAX_REPORT,
            ping_interval=None,  # heartbeats tell more
            close_timeout=2,
        )
        try:
            yield
        finally:
            watch.cancel()
            self._break_off()
            server.close()
            # Whoever is just proving its identity may take long and is refused in the end; the next term need not wait.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CLOSING):
                    await server.wait_closed()

    def _break_off(self) -> None:
        sessions, self._sessions = self._sessions, {}
        for session in sessions.values():
            if session.connection:
                session.connection.transport.abort()
        self._telemetry.agents.set(0)

    async def _authenticate(self, connection: ServerConnection, request: Request) -> Response | None:
        if not self._leads():
            return self._refuse(connection, http.HTTPStatus.SERVICE_UNAVAILABLE, "NotLeader: ask another replica")
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
        if not self._leads():  # not any more, after all the time that the token took
            return
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
        now = asyncio.get_running_loop().time()
        session = Session(identity, connection, now, former.report if former else None, moved=now)
        if former:
            session.moved, session.steps = former.moved, former.steps
        self._sessions[identity.uid] = session  # the controller hears of it with its first report
        if directive := self._directives.of(identity.uid):
            broadcast([connection], codec.encode(directive))
        return session

    def _receive(self, session: Session, text: str | bytes) -> str | None:
        """Take in a report; returns a complaint if the connection is to be closed."""
        try:
            report = codec.decode(wire.Report, text)
        except codec.WireError as error:
            return str(error)
        if complaint := contradiction(session.identity, report):
            return complaint
        now = asyncio.get_running_loop().time()
        self._telemetry.gaps.observe(now - session.heard)
        urgent = differs_in_substance(session.report, report)
        session.untold |= report != session.report or not session.spoke
        session.hear(report, now)
        if session.untold and (urgent or now - session.told >= PROGRESS_INTERVAL):
            self._tell(session)
        return None

    def _dismiss(self, session: Session, connection: ServerConnection, detail: str) -> None:
        if session.connection is not connection or self._sessions.get(session.identity.uid) is not session:
            return  # replaced by a newer connection, or already given up
        session.connection = None
        session.detail = detail
        self._tell(session)

    # Directives and updates

    def pass_on(self, publish: wire.Publish) -> None:
        """Tell a job's agents what changed for them."""
        texts: dict[Key, str] = {}  # members of one round are all told the same
        for uid, directive in self._directives.replace(with_keys(publish, self._secret)).items():
            session = self._sessions.get(uid)
            if session is None or session.connection is None:
                continue
            key = key_of(directive)
            text = texts.get(key) or texts.setdefault(key, codec.encode(directive))
            broadcast([session.connection], text)

    def _tell(self, session: Session) -> None:
        if session.report is None:
            return  # its job is not known, so nobody could do anything about it
        now = session.told = asyncio.get_running_loop().time()
        session.untold = False
        self._tell_controller(session.update(now))

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
        for uid in self._missed(now, lag):
            self._miss(self._sessions[uid], now)
        for uid, session in list(self._sessions.items()):
            if session.untold and now - session.told >= PROGRESS_INTERVAL:
                self._tell(session)
            if session.connection is None and now - session.heard > RETENTION:
                del self._sessions[uid]
        self._telemetry.agents.set(len(connected))
        self._telemetry.lag.set(lag)

    def _missed(self, now: float, lag: float) -> set[str]:
        rounds: dict[tuple[str, str, int], dict[str, Part]] = {}
        for uid, session in self._sessions.items():
            if session.report and (part := session.part()):
                key = session.identity.namespace, session.report.job, session.report.round
                rounds.setdefault(key, {})[uid] = part
        found = {uid for parts in rounds.values() for uid in missed(now, parts, lag)}
        return {uid for uid in found if not self._sessions[uid].missed}

    def _miss(self, session: Session, now: float) -> None:
        session.missed = True
        if session.connection:
            self._give_up(session, now, ", and its round stands still")
        else:
            self._tell(session)

    def _give_up(self, session: Session, now: float, more: str = "") -> None:
        self._telemetry.expired.inc()
        connection, session.connection = session.connection, None
        session.detail = f"no heartbeat for {now - session.heard:.1f} s{more}"
        log.warning("lost %s: %s", session.identity.pod, session.detail)
        self._tell(session)
        if connection:
            connection.transport.abort()
