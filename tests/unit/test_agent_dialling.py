"""Finding the replica that listens, whatever becomes of the attempts at the others."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time

import pytest

from llmtrain_trainer.agent.dialling import CONNECT_TIMEOUT, Dialler, _first


def bound(host: str, port: int = 0, backlog: int | None = None) -> socket.socket:
    """A socket bound there; it listens if a backlog is given."""
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    found.bind((host, port))
    if backlog is not None:
        found.listen(backlog)
    return found


@contextlib.contextmanager
def deaf(host: str, port: int):
    """An address that answers no attempt, like a node without power: its queue is full already."""
    with bound(host, port, backlog=0) as full, contextlib.ExitStack() as stack:
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                waiting.connect((host, port))
        yield full


async def test_the_one_that_listens_is_found_beside_a_dead_node_and_a_standby() -> None:
    """At once: the attempt that nobody answers is not waited for."""
    with bound("127.0.0.1", backlog=5) as leader:
        port = leader.getsockname()[1]
        with deaf("127.0.0.2", port), bound("127.0.0.3", port):
            hosts = ("127.0.0.2", "127.0.0.3", "127.0.0.1")
            troubles: list[str] = []
            began = time.monotonic()
            link = await _first(tuple((socket.AF_INET, (host, port)) for host in hosts), troubles)
            assert time.monotonic() - began < CONNECT_TIMEOUT / 2
            assert link is not None
            assert link.getpeername() == ("127.0.0.1", port)
            link.close()


async def test_nobody_listens_and_the_error_says_what_happened_where() -> None:
    """Each address with its own trouble."""
    with bound("127.0.0.1") as standby:
        port = standby.getsockname()[1]
        urls = (f"wss://127.0.0.1:{port}", f"wss://nowhere.invalid:{port}")
        with deaf("127.0.0.2", port), pytest.raises(OSError, match="Connect call failed") as raised:
            await Dialler((*urls, f"wss://127.0.0.2:{port}")).dial()
        assert "nowhere.invalid: " in str(raised.value)
        assert "127.0.0.2: no answer" in str(raised.value)


async def test_a_name_that_cannot_be_resolved_any_more_stands_for_what_it_did() -> None:
    """Name servers fail together with nodes."""
    with bound("127.0.0.1", backlog=5) as leader:
        dialler = Dialler((f"wss://localhost:{leader.getsockname()[1]}",))
        (await dialler.dial()).close()

        async def fails(*_: object, **__: object) -> None:
            raise socket.gaierror("no name server")

        asyncio.get_running_loop().getaddrinfo = fails  # type: ignore[method-assign]
        (await dialler.dial()).close()
