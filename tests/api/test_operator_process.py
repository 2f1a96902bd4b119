"""The operator as a process: it becomes ready, and ends when told to."""

import asyncio
import time
from pathlib import Path

from tests.support.operator_process import Replica, replicas


async def test_sigterm_ends_the_operator_in_good_order(kubeconfig: Path, tmp_path: Path) -> None:
    """Within a few seconds and with 0: whatever a pass had begun is found again in the jobs' status."""
    replica = Replica(kubeconfig, tmp_path, f"default/{tmp_path.name.replace('_', '-')}")
    async with replicas(replica):
        await asyncio.sleep(1)  # until kopf runs too
        began = time.monotonic()
        code = await replica.end()
        assert (code, "Traceback" in replica.log()) == (0, False), replica.log()
        assert time.monotonic() - began < 3
