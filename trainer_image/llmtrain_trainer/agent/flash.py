"""The agent's part in snapshots: it hands out its pod's, has them copied, and takes in those of others.

In a user's image that lacks xxhash there is none of it, and the workers go without.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import threading
from pathlib import Path
from typing import Final

from llmtrain_operator.contract import names
from llmtrain_operator.contract.wire import Round
from llmtrain_trainer.agent.environment import Environment

log = logging.getLogger(__name__)

_MAX_DATAGRAM: Final = 4096


def open_flash(environment: Environment, notices: Path) -> AgentFlash | None:
    """None if this pod has no flash store. `notices`: where workers tell of their snapshots."""
    if environment.flash is None:
        return None
    try:
        return AgentFlash(environment, environment.flash, notices)
    except ImportError as error:
        log.warning("no snapshots in memory: %s; use an image that has it", error)
        os.environ.pop(names.ENV_FLASH)
        return None


class AgentFlash:
    """For all rounds of a member. `port`: where other members find it."""

    def __init__(self, environment: Environment, root: Path, notices: Path) -> None:
        """Raises ImportError."""
        from llmtrain_trainer.flash.replicator import Replicator
        from llmtrain_trainer.flash.server import Server
        from llmtrain_trainer.flash.store import Store

        settings = (environment.spec.get("checkpoint") or {}).get("flash") or {}
        self._replicas = int(settings.get("replicas", 1))
        self._uid, self._host = environment.uid, environment.host
        self._keys: dict[int, str] = {}
        store = Store(root, environment.job_uid)
        self._replicators = [Replicator(store, local_rank) for local_rank in range(environment.procs)]
        self._server = Server(store, environment.host, self._keys.get)
        self._server.start()
        self.port = self._server.port
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.bind(str(notices))
        os.environ[names.ENV_FLASH_SOCKET] = str(notices)
        threading.Thread(target=self._receive, name="flash-notices", daemon=True).start()

    def enter(self, entered: Round) -> dict[str, str]:
        """The workers of this round are about to start; what they have to know. Those of earlier rounds are refused
        from now on."""
        from llmtrain_trainer.flash.protocol import Pass
        from llmtrain_trainer.flash.replicator import Circle

        self._keys.clear()
        self._keys[entered.number] = entered.key
        rank = entered.rank_of(self._uid) or 0
        buddies = entered.buddies[rank] if rank < len(entered.buddies) else _ring(rank, len(entered.members))
        members = {buddy: entered.members[buddy] for buddy in buddies if buddy < len(entered.members)}
        addresses = {f"{m.host}:{m.flash_port}": buddy for buddy, m in members.items() if m.flash_port}
        circle = Circle(Pass(entered.number, entered.key), addresses, min(self._replicas, len(addresses)))
        for replicator in self._replicators:
            replicator.assign(circle)
        told = {names.ENV_FLASH_ADDRESS: f"{self._host}:{self.port}", names.ENV_FLASH_KEY: entered.key}
        return told | ({names.ENV_MTBF: f"{entered.mtbf:.0f}"} if entered.mtbf else {})

    def _receive(self) -> None:
        from llmtrain_trainer.flash.notices import Notice

        while True:
            select.select([self._socket], [], [])
            with contextlib.suppress(BlockingIOError, ValueError):
                notice = Notice.decode(self._socket.recv(_MAX_DATAGRAM))
                if 0 <= notice.local_rank < len(self._replicators):
                    self._replicators[notice.local_rank].tell(notice)


def _ring(rank: int, size: int) -> tuple[int, ...]:
    """The others in order, where nobody has chosen."""
    return tuple((rank + step) % size for step in range(1, size))
