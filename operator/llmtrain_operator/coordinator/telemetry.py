"""The coordinator's metrics and its health, over plain HTTP on a port of their own."""

from __future__ import annotations

import http
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.http11 import Request, Response


class Telemetry:
    """The gauges and counters, each in a registry of its own so that tests can have several coordinators."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.agents = Gauge("llmtrain_agents_connected", "Agents that are connected.", registry=self.registry)
        self.lag = Gauge("llmtrain_coordinator_lag_seconds", "Recent stalls of the event loop.", registry=self.registry)
        self.gaps = Histogram(
            "llmtrain_heartbeat_gap_seconds",
            "Time between two reports of one agent.",
            buckets=(0.6, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0),
            registry=self.registry,
        )
        self.expired = Counter("llmtrain_agents_expired", "Agents lost by silence.", registry=self.registry)
        self.refused = Counter("llmtrain_agents_refused", "Connections refused.", registry=self.registry)


def serve_health(telemetry: Telemetry, host: str, port: int) -> AbstractAsyncContextManager[Server]:
    """An HTTP server for /healthz, /readyz and /metrics in the coordinator's own loop, which it thereby probes."""
    answers: dict[str, Callable[[], str]] = {
        "/healthz": lambda: "ok\n",
        "/readyz": lambda: "ok\n",
        "/metrics": lambda: generate_latest(telemetry.registry).decode(),
    }

    def answer(connection: ServerConnection, request: Request) -> Response:
        render = answers.get(request.path)
        if render is None:
            return connection.respond(http.HTTPStatus.NOT_FOUND, f"try {', '.join(answers)}\n")
        return connection.respond(http.HTTPStatus.OK, render())

    return serve(_never, host, port, process_request=answer)


async def _never(connection: ServerConnection) -> None:
    raise AssertionError(f"{connection.remote_address} got a WebSocket from the health port")
