"""The process `llmtrain-coordinator`: arguments, TLS, signals."""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import logging
import signal
import ssl
from collections.abc import Sequence
from pathlib import Path

from llmtrain_operator.contract import names
from llmtrain_operator.coordinator.auth import Authenticator
from llmtrain_operator.coordinator.server import Coordinator
from llmtrain_operator.coordinator.telemetry import Telemetry, serve_health

log = logging.getLogger(__name__)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser("llmtrain-coordinator", description=__doc__)
    parser.add_argument("--listen", default="0.0.0.0", help="address for agents and health (default: %(default)s)")
    parser.add_argument("--port", type=int, default=names.DEFAULT_COORDINATOR_PORT, help="port for agents")
    parser.add_argument("--tls-cert", type=Path, required=True, help="PEM file with the certificate chain")
    parser.add_argument("--tls-key", type=Path, required=True, help="PEM file with its key")
    parser.add_argument("--control-socket", type=Path, default=Path("/run/llmtrain/coordinator.sock"))
    parser.add_argument(
        "--heartbeat-deadline", type=float, default=3.0, help="seconds of silence that end a membership"
    )
    parser.add_argument("--health-port", type=int, default=8082, help="/healthz, /readyz and /metrics")
    return parser.parse_args(argv)


def server_tls(cert: Path, key: Path) -> ssl.SSLContext:
    """TLS for the agents' socket. Raises `OSError` or `ssl.SSLError` when the files are not what they should be."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(cert, key)
    return context


async def run(options: argparse.Namespace, authenticator: Authenticator) -> None:
    """Serve until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    telemetry = Telemetry()
    # Of what all replicas have in common and nobody else has.
    secret = hashlib.sha256(b"llmtrain rounds " + options.tls_key.read_bytes()).digest()
    coordinator = Coordinator(authenticator, options.heartbeat_deadline, telemetry, secret)
    tls = server_tls(options.tls_cert, options.tls_key)
    async with (
        coordinator.serving(options.listen, options.port, tls, options.control_socket),
        serve_health(telemetry, options.listen, options.health_port),
    ):
        log.info("agents: %s:%s, controller: %s", options.listen, options.port, options.control_socket)
        await stop.wait()


async def _main(options: argparse.Namespace) -> None:
    # Imported where it is needed: everything else here runs without a Kubernetes client.
    from llmtrain_operator.cluster.tokenreview import TokenReviewAuthenticator

    async with TokenReviewAuthenticator.connected() as authenticator:
        await run(options, authenticator)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("websockets").setLevel(logging.WARNING)
    asyncio.run(_main(parse(argv)))
