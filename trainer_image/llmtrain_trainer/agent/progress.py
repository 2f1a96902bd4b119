"""The socket on which workers tell their progress: datagrams, so that a worker never waits for its agent."""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from llmtrain_operator.contract import codec, wire
from llmtrain_trainer.agent.redaction import redactor

log = logging.getLogger(__name__)

MAX_DATAGRAM: Final = 64 * 1024


def _without_secrets(progress: wire.Progress) -> wire.Progress:
    """What storage and trackers say of themselves may hold what it was given to get in."""
    said, tracking, clean = progress.checkpoints, progress.tracking, redactor().text
    if tracking is not None:
        progress = replace(progress, tracking=replace(tracking, error=clean(tracking.error)))
    if said is None:
        return progress
    safe = replace(said, error=clean(said.error), skipped=tuple(clean(each) for each in said.skipped))
    return replace(progress, checkpoints=safe)


class ProgressSocket:
    """Receives at `path` in a thread of its own until the process ends. `on_progress` may be called in any thread."""

    def __init__(self, path: Path, on_progress: Callable[[wire.Progress], None]) -> None:
        self._on_progress = on_progress
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.bind(str(path))
        self._lock = threading.Lock()
        threading.Thread(target=self._receive, name="progress", daemon=True).start()

    def _receive(self) -> None:
        while True:
            select.select([self._socket], [], [])
            self.drain()

    def drain(self) -> None:
        """Pass on all that was sent before this call. A worker's end is known sooner than its last word is read."""
        with self._lock, contextlib.suppress(BlockingIOError):
            while True:
                self._pass_on(self._socket.recv(MAX_DATAGRAM))

    def _pass_on(self, text: bytes) -> None:
        try:
            self._on_progress(_without_secrets(codec.decode(wire.Progress, text)))
        except codec.WireError as error:
            log.warning("a worker sent something unknown: %s", error)
