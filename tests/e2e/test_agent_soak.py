"""Training under load: heartbeats must come through. LLMTRAIN_SOAK_SECONDS sets how long (`make soak`: 30 minutes)."""

import asyncio
import os
import subprocess
import sys
import time

import pytest

from tests.support.director import Director, script

SECONDS = float(os.environ.get("LLMTRAIN_SOAK_SECONDS", "60"))
LOAD = 8
BUSY = "import time\nend = time.monotonic() + float(__import__('sys').argv[1])\nwhile time.monotonic() < end: pass"


@pytest.fixture
def load():
    """Eight processes that do nothing but compute, at the same priority; each ends by itself."""
    busy = [subprocess.Popen([sys.executable, "-c", BUSY, str(SECONDS + 120)]) for _ in range(LOAD)]
    yield
    for process in busy:
        process.kill()
        process.wait()


@pytest.mark.timeout(SECONDS + 300)
async def test_soak_no_member_is_falsely_lost_under_load(tmp_path, load):
    """Three members train beside eight busy processes; none is ever reported as gone."""
    async with Director(tmp_path) as director:
        uids = [director.start_agent(i, script("allreduce.py", 10_000_000, 0.05)) for i in range(3)]
        await director.until_state("joining", *uids, within=120)
        director.run(1, *uids)
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            await asyncio.sleep(1.0)
            lost = [update for update in director.history if not update.connected]
            assert lost == []
            assert {director.reports[uid].state for uid in uids} <= {"joining", "running"}
        assert {director.reports[uid].state for uid in uids} == {"running"}
        metrics = await director.metrics()
        gaps = [line for line in metrics.splitlines() if line.startswith("llmtrain_heartbeat_gap_seconds_bucket")]
        print(f"{SECONDS:.0f} s at load {os.getloadavg()[0]:.1f}", *gaps, sep="\n")
