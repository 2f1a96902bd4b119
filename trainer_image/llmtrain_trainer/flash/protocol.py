"""What agents and workers say to each other's agents over TCP: frames of JSON and bytes. Pure but for the socket.

    >>> 4 bytes length | JSON        and where the JSON says so, that many bytes

A connection begins with both sides proving that they know the round's key, without telling it: a member of no round, or
of another, gets nothing and leaves nothing. The bytes that follow are not encrypted, like those of gloo and NCCL.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import secrets
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

VERSION: Final = 1
CONNECT_TIMEOUT: Final = 5.0
TIMEOUT: Final = 30.0
"""Seconds without a byte after which a peer counts as gone."""
_ALIVE: Final = 5
"""Seconds between questions whether the other side's node is there."""
_LENGTH: Final = struct.Struct("<I")
_MOST: Final = 256 * 2**20
_NICE: Final = 10
_BUFFER: Final = 4 * 2**20


class PeerGone(Exception):  # noqa: N818 - it says what happened
    """The other side is not there, does not answer, or is not what it says it is."""


@dataclass(frozen=True, slots=True)
class Pass:
    """What lets a member of a round in."""

    round: int
    key: str


def call(address: str, by: Pass) -> socket.socket:
    """A connection to a member's agent, both sides proved. Raises `PeerGone`."""
    host, _, port = address.rpartition(":")
    with as_gone(address):
        link = socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT)
        try:
            _introduce(link, by)
        except BaseException:
            link.close()
            raise
    return link


def _introduce(link: socket.socket, by: Pass) -> None:
    prepare(link)
    nonce = secrets.token_hex(16)
    send(link, {"version": VERSION, "round": by.round, "nonce": nonce})
    answer = receive(link)
    if not hmac.compare_digest(str(answer.get("proof")), _proof(by.key, "server", nonce)):
        raise PeerGone("it is in another round")
    send(link, {"proof": _proof(by.key, "client", str(answer.get("nonce")))})


def admit(link: socket.socket, key_of: Callable[[int], str | None]) -> int | None:
    """The other side of `call`: the round that the caller has proved to be in, None if it has not.

    `key_of`: the key of a round that this side is in too.
    """
    prepare(link)
    hello = receive(link)
    number = int(hello.get("round", -1))
    key, nonce = key_of(number), secrets.token_hex(16)
    if key is None:
        send(link, {"version": VERSION, "nonce": nonce})
        return None
    send(link, {"version": VERSION, "nonce": nonce, "proof": _proof(key, "server", str(hello.get("nonce")))})
    proof = str(receive(link).get("proof"))
    return number if hmac.compare_digest(proof, _proof(key, "client", nonce)) else None


def prepare(link: socket.socket) -> None:
    """Set what every connection has. A node that is gone is noticed also while nothing is sent."""
    link.settimeout(TIMEOUT)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _ALIVE)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _ALIVE)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 2)


def send(link: socket.socket, message: dict[str, Any], data: bytes | memoryview = b"") -> None:
    """A message, and the bytes that it speaks of."""
    text = json.dumps(message, separators=(",", ":")).encode()
    link.sendall(_LENGTH.pack(len(text)) + text)
    if len(data):
        link.sendall(data)


def receive(link: socket.socket) -> dict[str, Any]:
    """The next message. Raises `PeerGone` at the end of the connection."""
    (length,) = _LENGTH.unpack(exactly(link, _LENGTH.size))
    if length > _MOST:
        raise PeerGone(f"a message of {length} bytes")
    message = json.loads(exactly(link, length))
    if not isinstance(message, dict):
        raise PeerGone("no message of this protocol")
    return message


def exactly(link: socket.socket, count: int) -> bytes:
    """So many bytes."""
    room = bytearray(count)
    receive_into(link, memoryview(room))
    return bytes(room)


def receive_into(link: socket.socket, into: memoryview) -> None:
    """As many bytes as fill `into`. Raises `PeerGone`."""
    while into:
        count = link.recv_into(into, min(len(into), _BUFFER))
        if not count:
            raise PeerGone("the connection ended")
        into = into[count:]


def yield_to_training() -> None:
    """Let the calling thread have what training leaves of the CPU, and a little more: a tenth of what it asks for."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)


@contextlib.contextmanager
def as_gone(address: str) -> Iterator[None]:
    """What the network raises, as `PeerGone`."""
    try:
        yield
    except PeerGone as gone:
        raise PeerGone(f"{address}: {gone}") from gone
    except (OSError, ValueError) as error:
        raise PeerGone(f"{address}: {error or type(error).__name__}") from error


def _proof(key: str, role: str, nonce: str) -> str:
    return hmac.new(key.encode(), f"{role} {nonce}".encode(), hashlib.sha256).hexdigest()
