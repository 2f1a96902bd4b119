"""Operator replicas as processes: what the chart runs, without pods."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp

from llmtrain_operator.cluster.client import Client
from llmtrain_operator.cluster.resources import LEASES
from tests.support.director import PYTHONPATH, free_port


class Replica:
    """One operator process. `folder` takes its control socket and its log."""

    def __init__(self, kubeconfig: Path, folder: Path, lease: str, namespaces: str = "") -> None:
        folder.mkdir(exist_ok=True)
        (folder / "ca.pem").write_text("no agent comes")
        self.kubeconfig = kubeconfig
        self.port, self.control, self._log = free_port(), folder / "c.sock", folder / "log"
        options = {
            "kubeconfig": kubeconfig,
            "lease": lease,
            "namespaces": namespaces,
            "http-port": self.port,
            "coordinator-ca": folder / "ca.pem",
            "coordinator-url": "wss://c:1",
            "control-socket": self.control,
            "trainer-image": "t",
            "operator-image": "o",
        }
        self._command = [sys.executable, "-m", "llmtrain_operator.main", *(f"--{k}={v}" for k, v in options.items())]
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it; returns when it is ready, which a standby is too."""
        environment = {**os.environ, "PYTHONPATH": PYTHONPATH}
        with self._log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(*self._command, env=environment, stdout=log, stderr=log)
        async with aiohttp.ClientSession() as session, asyncio.timeout(60):
            while not await self._ready(session):
                assert self.process.returncode is None, self.log()
                await asyncio.sleep(0.1)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self.process
        self.process.send_signal(number)

    async def end(self) -> int:
        """SIGTERM; the exit code."""
        assert self.process
        if self.process.returncode is None:
            self.signal(signal.SIGTERM)
            self.signal(signal.SIGCONT)
        return await asyncio.wait_for(self.process.wait(), 20)

    def log(self) -> str:
        """What it has said."""
        return self._log.read_text()

    def holds(self, holder: str) -> bool:
        """Whether the Lease's holder is this process: it says so when it takes it."""
        return bool(holder) and f"this replica, {holder}, leads" in self.log()

    def stands_by(self, holder: str) -> bool:
        """Whether it knows that another holds the Lease."""
        return bool(holder) and f"standing by: held by {holder}" in self.log()

    async def _ready(self, session: aiohttp.ClientSession) -> bool:
        try:
            async with session.get(f"http://127.0.0.1:{self.port}/readyz") as answer:
                return answer.status == 200
        except aiohttp.ClientError:
            return False


@contextlib.asynccontextmanager
async def replicas(*all_of_them: Replica) -> AsyncIterator[None]:
    """Start these, and kill what is left of them in the end."""
    try:
        await asyncio.gather(*(replica.start() for replica in all_of_them))
        yield
    finally:
        for replica in all_of_them:
            if replica.process and replica.process.returncode is None:
                replica.process.kill()
                await replica.process.wait()


async def holder_of(client: Client, lease: str) -> str:
    """Who holds the Lease `NAMESPACE/NAME`, empty if nobody does."""
    found = await client.request("get", LEASES, *lease.split("/"))
    return str((found.get("spec") or {}).get("holderIdentity") or "")
