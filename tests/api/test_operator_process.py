"""The operator as a process: it becomes ready, and ends when told to."""

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import aiohttp

from tests.support.director import PYTHONPATH, free_port


async def _ready(port: int) -> None:
    async with aiohttp.ClientSession() as session, asyncio.timeout(30):
        while True:
            try:
                async with session.get(f"http://127.0.0.1:{port}/readyz") as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.1)


async def test_sigterm_ends_the_operator_in_good_order(kubeconfig: Path, tmp_path: Path) -> None:
    """Within a few seconds and with 0: whatever a pass had begun is found again in the jobs' status."""
    ca, port = tmp_path / "ca.pem", free_port()
    ca.write_text("no agent comes")
    options = {
        "kubeconfig": kubeconfig, "http-port": port, "coordinator-ca": ca, "coordinator-url": "wss://c:1",
        "control-socket": tmp_path / "c.sock", "trainer-image": "t", "operator-image": "o",
    }  # fmt: skip
    arguments = [f"--{name}={value}" for name, value in options.items()]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "llmtrain_operator.main", *arguments, env={**os.environ, "PYTHONPATH": PYTHONPATH},
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr
    try:
        await _ready(port)
        await asyncio.sleep(1)  # until kopf runs too
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        _, errors = await asyncio.wait_for(process.communicate(), 10)
    finally:
        if process.returncode is None:
            process.kill()
    assert (process.returncode, b"Traceback" in errors) == (0, False), errors.decode()
    assert time.monotonic() - began < 3
