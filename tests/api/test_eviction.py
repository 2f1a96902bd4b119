"""Evictions by the real API server and its disruption controller: they get through, one member after the other.

Kubelets and agents are played here: pods run at once, agents do as they are told, and replacements find no room.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools

import pytest

from llmtrain_operator.cluster.client import NotFound
from llmtrain_operator.cluster.cluster import Cluster
from llmtrain_operator.cluster.resources import BY_KIND, JOBS, PODS
from llmtrain_operator.contract import names
from llmtrain_operator.contract.wire import AgentUpdate, Checkpoints, Flash, Progress, Report
from llmtrain_operator.controller import Controller
from llmtrain_operator.manifests import Settings
from llmtrain_operator.metrics import Metrics
from llmtrain_operator.plan import budget
from llmtrain_operator.ports import Unavailable
from llmtrain_operator.workqueue import WorkQueue
from tests.api.test_scheduling import going

SPEC = {"model": {"preset": "gpt-tiny"}, "data": {"source": "/data"}, "training": {"maxSteps": 100000}}
STORAGE = {"durable": {"storage": "file:///c"}}
ROOM = 3
"""Pods that get a node; those after them wait for one for ever."""


class World:
    """Operator, kubelets and agents of one namespace. Each snapshot has one copy, with the next in rank."""

    def __init__(self, client, namespace):
        self.client, self.namespace = client, namespace
        self.port = Cluster(client, self._wake, [namespace])
        settings = Settings("trainer:1", "operator:1", "wss://coordinator:7443", "CA")
        self.controller = Controller(self.port, self, settings, Metrics(), self._wake)
        self._queue = WorkQueue(self.controller.reconcile)
        self._reports: dict[str, Report] = {}
        self._placed: set[str] = set()
        self._stores = itertools.count(4000)
        self.key = f"{namespace}/a"
        self.most_leaving = 0

    def _wake(self, key, delay=0.0):
        self._queue.add(key, delay)

    async def run(self):
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.port.run())
            await self.port.synced()
            self.controller.link_changed(True)
            tasks.create_task(self._queue.run())
            tasks.create_task(self._kubelets())

    async def _kubelets(self):
        while True:
            pods = self.port.pods(self.key)
            self.most_leaving = max(self.most_leaving, sum(pod.deleting for pod in pods))
            for pod in pods:
                if pod.deleting:
                    await self._end(pod)
                elif pod.uid not in self._placed and len(self._placed) < ROOM:
                    await self._start(pod)
            self._wake(self.key)  # the leader's resync
            await asyncio.sleep(0.1)

    async def _end(self, pod):
        """SIGTERM, and the end as soon as the agent has ended."""
        report = self._reports.get(pod.uid)
        if report and report.state != "stopped":
            self._say(report, leaving="SIGTERM", state="stopped", store_port=0)
            return
        with contextlib.suppress(NotFound):
            await self.client.request("delete", PODS, self.namespace, pod.name, body={"gracePeriodSeconds": 0})

    async def _start(self, pod):
        self._placed.add(pod.uid)
        binding = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": pod.name}}
        binding["target"] = {"apiVersion": "v1", "kind": "Node", "name": f"none-{self.namespace}"}
        await self.client.request("create", PODS, self.namespace, pod.name, subresource="binding", body=binding)
        conditions = [{"type": "Ready", "status": "True"}]
        status = {"status": {"phase": "Running", "podIP": "10.0.0.1", "conditions": conditions}}
        await self.client.request("patch", PODS, self.namespace, pod.name, subresource="status", body=status)
        report = Report(self.key, pod.name, pod.uid, pod.index, pod.incarnation, "10.0.0.1", "joining")
        self._say(report, store_port=next(self._stores))

    def _say(self, report, **changes):
        self._reports[report.uid] = report = dataclasses.replace(report, **changes)
        self.controller.agent_changed(AgentUpdate(self.namespace, report.uid, True, "connected", report))

    def publish(self, publish):
        """The agents do at once as they are told."""
        for uid, directive in publish.directives.items():
            report = self._reports.get(uid)
            if report is None:
                continue
            if directive.action in ("save", "wait") and report.state == "running":
                self._say(report, state="joining", store_port=next(self._stores))
            elif directive.round and directive.round.number > report.round:
                rank, size = directive.round.rank_of(uid), len(directive.round.members)
                flash = Flash(step=9, committed=9, copies=1, kept_by=((rank + 1) % size,) if size > 1 else ())
                saved = Checkpoints(step=9) if "durable" in self.checkpoint else None
                said = Progress(rank, directive.round.number, step=9, max_steps=100000, flash=flash, checkpoints=saved)
                self._say(report, state="running", round=directive.round.number, progress=said)

    async def apply(self, nodes, checkpoint):
        self.checkpoint = checkpoint
        spec = SPEC | {"nodes": nodes, "checkpoint": checkpoint}
        body = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": "a"}, "spec": spec}
        await self.client.request("create", JOBS, self.namespace, body=body)

    async def until_members(self, count):
        async with asyncio.timeout(30):
            while len(self.status.get("round", {}).get("members", ())) != count:  # noqa: ASYNC110 - the server knows
                await asyncio.sleep(0.05)

    async def until_budgeted(self, members):
        """Wait for a round of so many, and for the disruption controller to let one of them go."""
        await self.until_members(members)
        async with asyncio.timeout(30):
            while True:
                found = await self.client.request("get", BY_KIND["PodDisruptionBudget"], self.namespace, "a")
                allowed = found.get("status", {}).get("disruptionsAllowed")
                if (found["spec"]["minAvailable"], allowed) == (members - 1, 1):
                    return
                await asyncio.sleep(0.05)

    @property
    def status(self):
        return (self.port.job(self.key) or {}).get("status", {})

    async def evict(self, name):
        """As `kubectl drain` does, again and again; how often it was refused."""
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": self.namespace}}
        async with asyncio.timeout(30):
            for refused in itertools.count():
                try:
                    await self.client.request("create", PODS, self.namespace, name, subresource="eviction", body=body)
                except Unavailable:
                    await asyncio.sleep(0.2)
                else:
                    return refused
        return None


@pytest.fixture
async def world(client, namespace):
    world = World(client, namespace)
    async with going(world.run()):
        yield world


@pytest.mark.parametrize(
    ("nodes", "checkpoint"),
    [
        pytest.param({"min": 1, "max": 3}, {}, id="elastic"),
        pytest.param({"min": 1, "max": 5}, {}, id="short-of-nodes-already"),
        pytest.param({"min": 3, "max": 3}, STORAGE, id="all-needed-and-saved"),
        pytest.param({"min": 1, "max": 1}, STORAGE, id="a-single-member"),
    ],
)
async def test_every_member_can_be_evicted_in_turn(world, nodes, checkpoint):
    """Though not one of them can be replaced."""
    await world.apply(nodes, checkpoint)
    size = min(ROOM, nodes["max"])
    await world.until_budgeted(size)
    for index in range(size):
        await world.evict(f"a-{index}-1")


async def test_what_only_members_that_wait_have_in_memory_is_kept_for_a_while(world, monkeypatch):
    """Below the minimum and without storage the next eviction would throw the job back to step 0. In the end it may."""
    monkeypatch.setattr(budget, "PATIENCE", 4.0)
    await world.apply({"min": 3, "max": 3}, {})
    await world.until_budgeted(3)
    began = asyncio.get_running_loop().time()
    await world.evict("a-0-1")
    refused = [await world.evict(f"a-{index}-1") for index in (1, 2)]
    assert refused[0] > 0
    assert asyncio.get_running_loop().time() - began > 3.0


async def test_members_of_a_round_go_one_at_a_time(world):
    """However many are asked for at once: the next when there is a round without the last, and none of it is a loss."""
    await world.apply({"min": 1, "max": 3}, {})
    await world.until_budgeted(3)
    await asyncio.gather(*(world.evict(f"a-{index}-1") for index in range(2)))
    await world.until_members(1)
    assert (world.most_leaving, world.status.get("restarts", 0)) == (1, 0)
