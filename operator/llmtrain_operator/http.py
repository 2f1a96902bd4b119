"""The operator's small HTTP server: /healthz for the kubelet's patience, /readyz for its trust, /metrics.

Plain HTTP without authentication: it tells numbers and one sentence, and serves nothing that changes anything.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Final

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from llmtrain_operator.metrics import Metrics

_COMPRESSED_HERE: Final = 64 * 1024
"""Bytes of an answer that are compressed in the event loop; what is larger, in a thread."""


@contextlib.asynccontextmanager
async def serve(port: int, metrics: Metrics, unready: Callable[[], str]) -> AsyncIterator[int]:
    """Serve on all addresses while the context lasts; gives the IPv4 port (0 asks for a free one).

    `unready` says in a few words what is still missing, nothing when the operator does its work. /healthz answers as
    long as the event loop turns. Raises `OSError` if the port is taken.
    """

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        missing = unready()
        return web.Response(text=f"{missing or 'ok'}\n", status=503 if missing else 200)

    async def scrape(_: web.Request) -> web.Response:
        headers = {"Content-Type": CONTENT_TYPE_LATEST}
        response = web.Response(body=await metrics.scrape(), headers=headers, zlib_executor_size=_COMPRESSED_HERE)
        response.enable_compression()
        return response

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", scrape)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, port=port).start()
        # With port 0 each address family gets a port of its own; IPv4 addresses are pairs.
        yield next(int(address[1]) for address in runner.addresses if len(address) == 2)
    finally:
        await runner.cleanup()
