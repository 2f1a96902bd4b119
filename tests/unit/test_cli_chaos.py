"""`llmtrain chaos`: what is asked before anything is done, and what a cluster is then asked for."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp.web
import pytest
import yaml
from click.testing import CliRunner

from llmtrain_operator.chaos.faults import FAULTS
from llmtrain_operator.chaos.hands import PodHand
from llmtrain_operator.cli import main
from llmtrain_operator.cluster.execution import Executed
from llmtrain_operator.cluster.user import UserCluster, open_cluster
from llmtrain_operator.ports import Rejected
from tests.support.specs import job
from tests.unit.test_chaos_run import pod


class Cluster(UserCluster):
    """A cluster as far as its answers go."""

    def __init__(self, done: Executed) -> None:
        self.done, self.asked = done, list[Any]()

    async def execute(self, *asked: Any) -> Executed:
        self.asked.append(asked)
        return self.done

    async def kill_pod(self, *asked: Any) -> None:
        self.asked.append(asked)


async def test_faults_in_a_pod_are_done_by_the_tool_in_it() -> None:
    """By exec; a pod itself is ended from outside, only if it is still that one."""
    cluster = Cluster(Executed(0, "SIGKILL to worker 7\n", ""))
    hand = PodHand(cluster)
    told = await hand.strike(FAULTS["kill-workers"], pod(1, "u1"), 4, 2.5)
    assert told == "SIGKILL to worker 7 of j-1-1"
    assert await hand.strike(FAULTS["kill-pod"], pod(1, "u1"), 4, 2.5) == "j-1-1 deleted without grace"
    command = ["python3", "-m", "llmtrain_trainer.chaos", "kill-worker", "--worker", "4", "--seconds", "2.5"]
    assert cluster.asked == [("ns", "j-1-1", command), ("ns", "j-1-1", "u1")]


async def test_what_the_tool_lacks_is_told_in_its_own_words() -> None:
    """Or its exit code, where it has none."""
    with pytest.raises(Rejected, match=r"j-1-1: no worker runs in this pod$"):
        await PodHand(Cluster(Executed(1, "", "error: no worker runs in this pod\n"))).strike(
            FAULTS["kill-worker"], pod(1, "u1"), 0, 1.0
        )
    with pytest.raises(Rejected, match="the tool ended with code 137"):
        await PodHand(Cluster(Executed(137, "", ""))).strike(FAULTS["kill-worker"], pod(1, "u1"), 0, 1.0)


class Server:
    """An API server with one job, and what it was asked to delete."""

    def __init__(self) -> None:
        self.deleted: list[Any] = []

    async def job(self, _: aiohttp.web.Request) -> aiohttp.web.Response:
        metadata = {"name": "j", "namespace": "ns", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z"}
        return aiohttp.web.json_response({**job("j"), "metadata": metadata})

    async def delete(self, request: aiohttp.web.Request) -> aiohttp.web.Response:
        self.deleted.append((request.match_info["pod"], await request.json()))
        return aiohttp.web.json_response({})


@pytest.fixture
async def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    server = Server()
    app = aiohttp.web.Application()
    app.router.add_get("/apis/llmtrain.io/v1alpha1/namespaces/ns/llmtrainjobs/j", server.job)
    app.router.add_delete("/api/v1/namespaces/ns/pods/{pod}", server.delete)
    runner = aiohttp.web.AppRunner(app)
    await runner.setup()
    site = aiohttp.web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    where = f"http://127.0.0.1:{runner.addresses[0][1]}"
    config = {
        "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": where}}],
        "users": [{"name": "c", "user": {"token": "token"}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
    }
    server.kubeconfig = tmp_path / "kubeconfig"
    server.kubeconfig.write_text(yaml.safe_dump(config))
    yield server
    await runner.cleanup()


async def test_a_pod_is_ended_at_once_and_only_that_very_one(server) -> None:
    """Its successor may have its name by now: never, but a precondition costs nothing."""
    async with open_cluster(server.kubeconfig, None) as cluster:
        await cluster.kill_pod("ns", "j-0-1", "u0")
    assert server.deleted == [("j-0-1", {"gracePeriodSeconds": 0, "preconditions": {"uid": "u0"}})]


@pytest.mark.parametrize("words", [["kill-pod"], [], ["kill-pod", "--unsafe", "--member", "1"]], ids=" ".join)
async def test_in_a_cluster_it_is_asked_before_anything_is_done(server, words: list[str]) -> None:
    """With the job, its namespace and what will be done; a no ends it."""
    arguments = ["chaos", "j", *words, "-n", "ns", "--kubeconfig", str(server.kubeconfig)]
    result = await asyncio.to_thread(CliRunner().invoke, main, arguments, input="n\n")
    assert result.exit_code == 1
    assert "of job j in namespace ns, 1 of these faults" in result.output
    assert "kill-pod: its pod ended without grace" in result.output
    assert ("kill-worker:" in result.output) == (not words)
    assert ("ALSO IF IT DOES NOT SURVIVE" in result.output) == ("--unsafe" in words)
    assert ("to its member 1 of job" in result.output) == ("--member" in words)
    assert not server.deleted


def test_the_memory_of_this_machine_is_not_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not the run's own."""
    monkeypatch.setenv("LLMTRAIN_CACHE", str(tmp_path))
    folder = tmp_path / "local/jobs/j"
    folder.mkdir(parents=True)
    metadata = {"name": "j", "namespace": "ns", "uid": "u", "generation": 1, "resourceVersion": "1"}
    (folder / "status.json").write_text(json.dumps({**job("j"), "metadata": metadata}))
    result = CliRunner().invoke(main, ["chaos", "j", "fill-memory", "--local"])
    assert result.exit_code == 2
    assert "fill-memory cannot be done here" in result.output
