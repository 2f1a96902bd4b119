"""The coordinator's two sockets: the controller's is always open, the agents' only while that controller leads.

A controller connects when it has become the leader and says again and again for how long that is certain. When it
leaves, or does not say so in time, the term ends and nobody listens on the agents' port: an agent that dials a
standby is refused by the kernel, which costs neither side anything, and goes on to the replica that listens. Nothing
is kept from one term to the next, because another replica may have led in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from websockets.asyncio.server import ServerConnection, broadcast, unix_serve
from websockets.exceptions import ConnectionClosed

from llmtrain_operator.clock import boot_time
from llmtrain_operator.contract import codec, wire
from llmtrain_operator.coordinator.auth import Authenticator
from llmtrain_operator.coordinator.bundle import Lead, unpack
from llmtrain_operator.coordinator.telemetry import Telemetry
from llmtrain_operator.coordinator.term import Term

log = logging.getLogger(__name__)

MAX_PUBLISH: Final = 64 * 2**20
FIRST_WORD: Final = 1.0
"""Seconds for which a controller that has just connected leads before it has said for how long."""


class Coordinator:
    """Serves agents in the terms of the controller, in one event loop. `secret`: see `keys`; None: a new one."""

    def __init__(
        self,
        authenticator: Authenticator,
        heartbeat_deadline: float,
        telemetry: Telemetry,
        secret: bytes | None = None,
    ) -> None:
        self._secret = secret or secrets.token_bytes(32)
        self._authenticator = authenticator
        self._deadline = heartbeat_deadline
        self._telemetry = telemetry
        self._controller: ServerConnection | None = None
        self._one_term = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def serving(self, host: str, port: int, tls: ssl.SSLContext | None, control: Path) -> AsyncIterator[int]:
        """The control socket open, and the agents' port reserved; without `tls` agents talk plainly, for loopback only.

        Yields the agents' port (`port`, or a free one if that is 0). Raises `OSError` if it is taken.
        """
        _make_room(control)
        with _bind(host, port) as reserved:
            port = reserved.getsockname()[1]

            async def lead(controller: ServerConnection) -> None:
                await self._lead(controller, lambda: _bind(host, port), tls)

            async with unix_serve(lead, str(control), compression=None, max_size=MAX_PUBLISH):
                yield port

    async def _lead(
        self, controller: ServerConnection, bind: Callable[[], socket.socket], tls: ssl.SSLContext | None
    ) -> None:
        """One term, which ends when the controller leaves, falls silent, or a newer one comes."""
        former, self._controller = self._controller, controller
        if former:
            former.transport.abort()
        async with self._one_term:
            if self._controller is not controller:
                return
            claim = _Claim(boot_time() + FIRST_WORD)

            def tell(update: wire.AgentUpdate) -> None:
                broadcast([controller], codec.encode(update))

            term = Term(self._authenticator, self._deadline, self._telemetry, tell, claim.holds, self._secret)
            async with term.serving(bind(), tls):
                log.info("the controller leads: agents are let in")
                why = await _follow(controller, term, claim)
            log.info("agents are let in no more: %s", why)


@dataclass(slots=True)
class _Claim:
    """The controller's claim to lead, up to `until` on `boot_time`'s clock."""

    until: float

    def holds(self) -> bool:
        return self.until > boot_time()


async def _follow(controller: ServerConnection, term: Term, claim: _Claim) -> str:
    """Do as the controller says while its claim holds; returns why it does not any more."""
    try:
        while claim.holds():
            async with asyncio.timeout(claim.until - boot_time()):
                text = await controller.recv()
            try:
                message = unpack(text)
            except codec.WireError as error:
                log.warning("the controller sent something unknown: %s", error)
                continue
            if isinstance(message, Lead):
                claim.until = message.until
            elif claim.holds():
                term.pass_on(message)
    except TimeoutError:
        pass
    except ConnectionClosed as error:
        return f"the controller left: {error}"
    return "the controller has not said in time that it still leads"


def _bind(host: str, port: int) -> socket.socket:
    """A socket that is bound, not listening. Several may be, so that the port stays ours between two terms."""
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    bound.bind((host, port))
    return bound


def _make_room(control: Path) -> None:
    """Prepare for a socket at `control` that only this user can reach."""
    control.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    control.unlink(missing_ok=True)  # left by a predecessor that was killed
