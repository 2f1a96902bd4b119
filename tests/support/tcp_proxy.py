"""A cable between a client and a server on loopback that a test can pull."""

import asyncio
import contextlib
from pathlib import Path
from urllib.parse import urlsplit

import yaml


class Cable:
    """Forwards connections to `host:port` while plugged; pulling it resets the ones that are open."""

    def __init__(self, host: str, port: int) -> None:
        self._target = host, port
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task] = set()
        self.port = 0

    async def plug(self) -> None:
        self._server = await asyncio.start_server(self._forward, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def pull(self) -> None:
        assert self._server
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _forward(self, reader, writer) -> None:
        task = asyncio.current_task()
        self._tasks.add(task)
        far_reader, far_writer = await asyncio.open_connection(*self._target)
        # A cancelled connection handler would be reported as an error by asyncio's streams.
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))
        for end in (writer, far_writer):
            end.transport.abort()
        self._tasks.discard(task)


async def _pump(reader, writer) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write_eof() if writer.can_write_eof() else writer.close()


@contextlib.asynccontextmanager
async def cable_to(kubeconfig: Path, folder: Path):
    """A plugged cable to the kubeconfig's API server, and a kubeconfig that goes through it."""
    config = yaml.safe_load(kubeconfig.read_text())  # noqa: ASYNC240 - small and local
    [cluster] = config["clusters"]
    url = urlsplit(cluster["cluster"]["server"])
    cable = Cable(url.hostname, url.port)
    await cable.plug()
    cluster["cluster"]["server"] = f"https://127.0.0.1:{cable.port}"
    copy = folder / "cable.kubeconfig"
    copy.write_text(yaml.safe_dump(config))
    try:
        yield cable, copy
    finally:
        await cable.pull()
