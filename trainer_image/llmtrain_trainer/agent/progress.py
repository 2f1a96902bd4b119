"""The socket on which workers tell their progress: datagrams, so that a worker never waits for its agent."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from llmtrain_operator.contract import wire

log = logging.getLogger(__name__)

MAX_DATAGRAM: Final = 64 * 1024


class ProgressSocket:
    """Receives at `path` in a thread of its own until the process ends."""

    def __init__(self, path: Path, on_progress: Callable[[wire.Progress], None]) -> None:
        self._on_progress = on_progress
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        threading.Thread(target=self._receive, name="progress", daemon=True).start()

    def _receive(self) -> None:
        while True:
            text = self._socket.recv(MAX_DATAGRAM)
            try:
                self._on_progress(wire.decode(wire.Progress, text))
            except wire.WireError as error:
                log.warning("a worker sent something unknown: %s", error)
