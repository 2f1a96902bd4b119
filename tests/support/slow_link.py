"""A slow connection to a server on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator

_PART = 16 * 2**10


@contextlib.contextmanager
def slow_link(port: int, pace: float, stalls_after: float = float("inf")) -> Iterator[int]:
    """A port that leads to `port`; answers come at `pace` bytes per second together, and no more after `stalls_after`
    bytes."""
    link = _Link(port, pace, stalls_after)
    thread = threading.Thread(target=link.run, daemon=True)
    thread.start()
    try:
        yield link.port()
    finally:
        link.end()
        thread.join()


class _Link:
    def __init__(self, port: int, pace: float, stalls_after: float) -> None:
        self._target, self._pace, self._left = port, pace, stalls_after
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._turn = asyncio.Lock()
        self._port = 0

    def port(self) -> int:
        assert self._ready.wait(5)
        return self._port

    def run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._forward, "127.0.0.1", 0))
        self._port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    def end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, questions = await asyncio.open_connection("127.0.0.1", self._target)
        with contextlib.suppress(asyncio.CancelledError, ConnectionError):
            await asyncio.gather(_pass_on(reader, questions), self._pass_on_slowly(answers, writer))
        for end in (writer, questions):
            end.transport.abort()

    async def _pass_on_slowly(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_PART):
            async with self._turn:
                if self._left <= 0:
                    await asyncio.Event().wait()
                self._left -= len(data)
                await asyncio.sleep(len(data) / self._pace)
            writer.write(data)
            await writer.drain()
        writer.close()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_PART):
        writer.write(data)
        await writer.drain()
