"""How fast the network to a neighbour is: what an all-reduce between two sends, and nothing of its sums.

Both sides send and receive as many bytes as the vector has, at once, over TCP: half of it to be added up, half of the
sums back. The neighbour may be training: it gives one thread to this, for as long as `LIMIT` at most, and lets in only
those who know its key, which the operator tells.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from typing import Final

from llmtrain_operator.contract.wire import Neighbour
from llmtrain_trainer.flash import protocol
from llmtrain_trainer.flash.protocol import Pass, PeerGone

log = logging.getLogger(__name__)

FIRST: Final = 256 * 2**10
MOST: Final = 16 * 2**20
"""Bytes of a vector: the first, and the largest, after doubling; the first gets through a bad network in time too."""
TOTAL: Final = 128 * 2**20
"""Bytes after which no other is begun: the neighbour may be training."""
LIMIT: Final = 30.0
_ROUND: Final = 0
"""What the protocol calls a round: these two are in none together."""


class Responder:
    """Answers those who measure their network against this agent's, one after the other."""

    def __init__(self, host: str) -> None:
        self.key = secrets.token_hex(16)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.create_server((host, 0), family=family)
        self.port: int = self._socket.getsockname()[1]
        self._turn = threading.Lock()

    def start(self) -> None:
        """Answer until the process ends, or `close`."""
        threading.Thread(target=self._accept, name="preflight", daemon=True).start()

    def close(self) -> None:
        """Answer nobody any more."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                link, _ = self._socket.accept()
                threading.Thread(target=self._answer, args=(link,), name="preflight-peer", daemon=True).start()

    def _answer(self, link: socket.socket) -> None:
        try:
            with link, _for_at_most(LIMIT, link):
                if protocol.admit(link, {_ROUND: self.key}.get) is None:
                    return
                with self._turn:
                    protocol.send(link, {"ready": True})
                    while (count := int(protocol.receive(link).get("reduce", 0))) in range(1, MOST + 1):
                        _all_reduce(link, bytes(count))
        except (PeerGone, OSError, ValueError) as error:
            log.debug("a neighbour's check ended: %s", error)


def measure(neighbour: Neighbour, seconds: float) -> float | None:
    """MB/s of the fastest all-reduce of those that `seconds` and `TOTAL` allow.

    None if the neighbour has no time for it now. Raises `PeerGone` if not even one was possible.
    """
    address = f"{neighbour.host}:{neighbour.port}"
    with protocol.as_gone(address), protocol.call(address, Pass(_ROUND, neighbour.key)) as link:
        link.settimeout(2 * seconds)
        try:
            protocol.receive(link)  # it is our turn
        except TimeoutError:
            return None
        with _for_at_most(2 * seconds, link):
            return _fastest(link, seconds)


def _fastest(link: socket.socket, seconds: float) -> float:
    best, count, total, end = 0.0, FIRST, 0, time.monotonic() + seconds
    try:
        while total < TOTAL and time.monotonic() < end:
            protocol.send(link, {"reduce": count})
            start = time.perf_counter()
            _all_reduce(link, bytes(count))
            best = max(best, count / (time.perf_counter() - start) / 1e6)
            total, count = total + count, min(MOST, 2 * count)
    except (PeerGone, OSError):
        if not best:
            raise
    return best


def _all_reduce(link: socket.socket, vector: bytes) -> None:
    half = memoryview(vector)[: (len(vector) + 1) // 2]
    for _ in range(2):
        _both_ways(link, half, memoryview(bytearray(len(half))))


def _both_ways(link: socket.socket, data: memoryview, room: memoryview) -> None:
    """Send and receive at the same time: the other side does too, and nobody's buffers have to hold it all."""
    failed: list[OSError] = []

    def send() -> None:
        try:
            link.sendall(data)
        except OSError as error:
            failed.append(error)

    sender = threading.Thread(target=send, name="preflight-send", daemon=True)
    sender.start()
    protocol.receive_into(link, room)
    sender.join()
    if failed:
        raise failed[0]


@contextlib.contextmanager
def _for_at_most(seconds: float, link: socket.socket) -> Iterator[None]:
    """Break the connection off when the time is up, however much still trickles in."""

    def end() -> None:
        with contextlib.suppress(OSError):
            link.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
