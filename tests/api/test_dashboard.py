"""The live page against a real API server: what a test writes into a status, rights that are missing, a server away."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import yaml

from llmtrain_operator.cluster.client import Client
from llmtrain_operator.cluster.resources import JOBS
from tests.support.specs import job

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-c", "from llmtrain_operator.cli import main; main(prog_name='llmtrain')")

Started = Callable[[Path], Any]


@pytest.fixture
def started(namespace: str) -> Started:
    """The command with a kubeconfig: a context that gives the page's address."""

    @asynccontextmanager
    async def start(config: Path) -> AsyncIterator[str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "operator"), "KUBECONFIG": str(config)}
        environment.pop("KUBERNETES_SERVICE_HOST", None)
        words = ("dashboard", "--no-browser", "-n", namespace)
        process = await asyncio.create_subprocess_exec(
            *COMMAND, *words, env=environment, stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout
        try:
            line = (await process.stdout.readline()).decode()
            found = re.search(r"http://127\.0\.0\.1:\S+", line)
            assert found, line
            yield found.group()
        finally:
            process.terminate()
            await process.wait()

    return start


def news(url: str, key: str, met: Callable[[dict[str, Any]], Any]) -> Awaitable[dict[str, Any]]:
    """The first news of this job's page that are as wanted."""

    def read() -> dict[str, Any]:
        with contextlib.closing(urlopen(f"{url}news?job={key}", timeout=60)) as stream:
            for line in stream:
                told: dict[str, Any] = json.loads(line[6:]) if line.startswith(b"data: ") else {}
                if met(told):
                    return told
        raise AssertionError("the stream has ended")

    return asyncio.to_thread(read)


def changed(kubeconfig: Path, place: Path, part: str, change: dict[str, Any]) -> Path:
    """A copy of the kubeconfig whose `part` (cluster, user) is another one."""
    content = yaml.safe_load(kubeconfig.read_text())
    content[f"{part}s"][0][part] = {**content[f"{part}s"][0][part], **change} if change else {}
    place.write_text(json.dumps(content))
    return place


async def test_a_status_that_is_written_is_shown(
    started: Started, kubeconfig: Path, client: Client, namespace: str
) -> None:
    """On the job's page, at the next look; when the job goes, its page says that too."""
    await client.request("create", JOBS, namespace, body=job("seen"))
    key = f"{namespace}/seen"
    async with started(kubeconfig) as url:
        await news(url, key, lambda told: key in told.get("jobs", ()))
        waiting = asyncio.ensure_future(news(url, key, lambda told: (told.get("page") or {}).get("history")))
        status = {"state": "Running", "observedGeneration": 1, "progress": {"step": 7, "loss": 3.5}}
        await client.request("patch", JOBS, namespace, "seen", subresource="status", body={"status": status})
        told = (await waiting)["page"]
        assert (told["row"]["state"], told["row"]["step"], told["history"][-1]["loss"]) == ("Running", 7, 3.5)
        await client.request("delete", JOBS, namespace, "seen")
        await news(url, key, lambda told: told.get("pageOf") == key and told["page"] is None)


async def test_who_may_not_see_the_jobs_is_told_whom_to_ask(started: Started, kubeconfig: Path, tmp_path: Path) -> None:
    """With the server's own words."""
    async with started(changed(kubeconfig, tmp_path / "nobody", "user", {})) as url:
        problem = (await news(url, "", lambda told: told.get("problem")))["problem"]
    assert (problem["title"], "system:anonymous" in problem["text"]) == ("No right to see this", True)


async def test_a_server_that_is_away_is_told_of(started: Started, kubeconfig: Path, tmp_path: Path) -> None:
    """With what to look at."""
    away = changed(kubeconfig, tmp_path / "away", "cluster", {"server": "https://127.0.0.1:9"})
    async with started(away) as url:
        problem = (await news(url, "", lambda told: told.get("problem")))["problem"]
    assert (problem["title"], "Is it up" in problem["text"]) == ("No answer from the cluster", True)
