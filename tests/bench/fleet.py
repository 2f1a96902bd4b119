"""Simulated nodes, kubelets, agents and coordinator: everything around a real operator and a real API server.

Pods are created, scheduled, bound and collected by the real control plane; what a kubelet and a trainer would do to
them is played here, and the operator hears of agents through its own control socket.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from websockets.asyncio.server import ServerConnection, unix_serve
from websockets.exceptions import ConnectionClosed

from llmtrain_operator.cluster.client import Client, NotFound
from llmtrain_operator.cluster.projections import pod_view
from llmtrain_operator.cluster.reflector import Reflector
from llmtrain_operator.cluster.resources import LEASES, NODES, PODS
from llmtrain_operator.contract import codec, names, wire
from llmtrain_operator.coordinator.bundle import Lead, unpack
from llmtrain_operator.ports import Conflict
from llmtrain_operator.state import PodView

NODE_COUNT = 4
STEP = 1.0
"""Seconds per simulated step, and between an agent's reports."""


@dataclass
class Measured:
    """What the fleet sees of the operator's speed, in seconds."""

    created: dict[str, float] = field(default_factory=dict)
    first_round: list[float] = field(default_factory=list)
    failed: dict[str, float] = field(default_factory=dict)
    next_round: list[float] = field(default_factory=list)


class Agent:
    """One member: kubelet, agent and trainer in one. Its workers fail once at each of the steps in `failures`."""

    def __init__(self, fleet: "Fleet", pod: PodView, steps: int, fails_at: int | None) -> None:
        self._fleet, self._pod, self._steps, self._fails_at = fleet, pod, steps, fails_at
        self._directed = asyncio.Event()
        self._state: wire.AgentState = "joining"
        self._round, self._step = 0, 0
        self._rank = 0
        self._failure: wire.Failure | None = None
        self.connected = False

    @property
    def key(self) -> str:
        return f"{self._pod.namespace}/{self._pod.job}"

    def direct(self) -> None:
        """There may be a new directive."""
        self._directed.set()

    def update(self) -> wire.AgentUpdate:
        pod = self._pod
        progress = None
        if self._round:
            phase = "loading" if self._step == 0 else "training"
            progress = wire.Progress(
                self._rank, self._round, phase, self._step, self._steps, loss=5.0 / (1 + self._step), step_seconds=STEP
            )
        report = wire.Report(
            job=self.key,
            pod=pod.name,
            uid=pod.uid,
            index=pod.index,
            incarnation=pod.incarnation,
            host="10.1.2.3",
            state=self._state,
            round=self._round,
            store_port=4000 + self._round,
            progress=progress,
            failure=self._failure,
        )
        return wire.AgentUpdate(pod.namespace, pod.uid, self.connected, "simulated", report)

    async def live(self) -> None:
        await asyncio.sleep(random.uniform(0.2, 0.6))
        await self._fleet.set_phase(self._pod, "Running")
        await asyncio.sleep(random.uniform(0.2, 0.6))
        self.connected = True
        await self._tell()
        while self._state != "stopped":
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STEP):
                    await self._directed.wait()
            if self._directed.is_set():
                self._directed.clear()
                await self._obey()
            else:
                await self._train()
        await self._fleet.set_phase(self._pod, "Succeeded")
        await self.leave()

    async def leave(self) -> None:
        if self.connected:
            self.connected = False
            await self._tell()

    async def _obey(self) -> None:
        directive = self._fleet.directive(self.key, self._pod.uid)
        if directive is None:
            return
        current = directive.round
        if directive.action == "stop":
            self._state = "stopped"
        elif directive.action == "wait" and self._state != "joining":
            self._state = "joining"
            await self._tell()
        elif directive.action == "run" and current and current.number > self._round:
            self._rank = current.rank_of(self._pod.uid) or 0
            self._round, self._step, self._state, self._failure = current.number, 0, "running", None
            self._fleet.round_began(self.key, current.number)
            await self._tell()

    async def _train(self) -> None:
        if self._state != "running":
            return
        self._step += 1
        if self._step == self._fails_at:
            self._fails_at = None
            self._failure = wire.Failure(names.REASON_KILLED, "simulated", self._round, self._rank, self._step)
            self._state = "failed"
            self._fleet.round_lost(self.key)
            await self._tell()
            self._state = "joining"
        elif self._step >= self._steps:
            self._state = "succeeded"
        await self._tell()

    async def _tell(self) -> None:
        await self._fleet.tell(self.update())


class TimedClient(Client):
    """A client that remembers how long the API server took to answer."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.seconds: list[float] = []

    async def request(self, *args: Any, **options: Any) -> dict[str, Any]:
        began = time.monotonic()
        answer = await super().request(*args, **options)
        self.seconds.append(time.monotonic() - began)
        return answer


class Fleet:
    """Nodes, the agents on them, and the coordinator's end of the operator's control socket."""

    def __init__(self, client: Client, namespace: str, socket: Path, steps: int) -> None:
        self.measured = Measured()
        self._client, self._socket, self._steps = client, socket, steps
        self._pods = Reflector(client, PODS, pod_view, self._pod_changed, namespace=namespace, selector=names.LABEL_JOB)
        self._agents: dict[str, tuple[Agent, asyncio.Task[None]]] = {}
        self._directives: dict[str, Mapping[str, wire.Directive]] = {}
        self._link: ServerConnection | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        await self._create_nodes()
        async with asyncio.TaskGroup() as parts:
            parts.create_task(self._pods.run())
            parts.create_task(self._renew_leases())
            parts.create_task(self._coordinate())

    def pods(self) -> list[PodView]:
        """All member pods."""
        return [pod for key in self._pods if (pod := self._pods.get(key))]

    def directive(self, job: str, uid: str) -> wire.Directive | None:
        return self._directives.get(job, {}).get(uid)

    def round_began(self, job: str, number: int) -> None:
        now = time.monotonic()
        if number == 1 and (since := self.measured.created.pop(job, None)):
            self.measured.first_round.append(now - since)
        if since := self.measured.failed.pop(job, None):
            self.measured.next_round.append(now - since)

    def round_lost(self, job: str) -> None:
        self.measured.failed[job] = time.monotonic()

    async def tell(self, update: wire.AgentUpdate) -> None:
        if self._link:
            with contextlib.suppress(ConnectionClosed):
                await self._link.send(codec.encode(update))

    async def lose(self, pod: PodView) -> None:
        """The pod's node dies and somebody cleans up after it."""
        self.round_lost(f"{pod.namespace}/{pod.job}")
        await self._delete(pod)

    async def set_phase(self, pod: PodView, phase: str) -> None:
        """What the kubelet says of the pod."""
        state: dict[str, Any] = {"running": {"startedAt": _now()}}
        if phase == "Succeeded":
            state = {"terminated": {"exitCode": 0, "reason": "Completed"}}
        ready = str(phase == "Running")
        status = {
            "phase": phase,
            "podIP": "10.1.2.3",
            "conditions": [{"type": "Ready", "status": ready}, {"type": "PodScheduled", "status": "True"}],
            "containerStatuses": [
                {"name": names.CONTAINER, "image": "", "imageID": "", "ready": phase == "Running", "restartCount": 0}
                | {"state": state}
            ],
        }
        with contextlib.suppress(NotFound):
            await self._client.request(
                "patch", PODS, pod.namespace, pod.name, subresource="status", body={"status": status}
            )

    async def _delete(self, pod: PodView) -> None:
        body = {"gracePeriodSeconds": 0, "preconditions": {"uid": pod.uid}}
        with contextlib.suppress(NotFound, Conflict):
            await self._client.request("delete", PODS, pod.namespace, pod.name, body=body)

    def _pod_changed(self, key: str, old: PodView | None, new: PodView | None) -> None:
        del key
        if old and (new is None or new.uid != old.uid) and old.uid in self._agents:
            agent, task = self._agents.pop(old.uid)
            task.cancel()
            self._spawn(agent.leave())
        if new and new.deleting:
            self._spawn(self._delete(new))
        elif new and new.node and new.uid not in self._agents and new.phase == "Pending":
            fails_at = random.randrange(2, self._steps) if random.random() < 0.08 else None
            agent = Agent(self, new, self._steps, fails_at if new.incarnation == 1 else None)
            self._agents[new.uid] = agent, self._spawn(agent.live())

    def _spawn(self, work: Any) -> "asyncio.Task[None]":
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _coordinate(self) -> None:
        async with unix_serve(self._serve, str(self._socket), compression=None, max_size=None):
            await asyncio.Future()

    async def _serve(self, connection: ServerConnection) -> None:
        self._link = connection
        for agent, _ in list(self._agents.values()):
            await connection.send(codec.encode(agent.update()))
        with contextlib.suppress(ConnectionClosed):
            await self._listen(connection)

    async def _listen(self, connection: ServerConnection) -> None:
        async for text in connection:
            publish = unpack(text)
            if isinstance(publish, Lead):
                continue
            self._directives[publish.job] = publish.directives
            for uid in publish.directives:
                if uid in self._agents:
                    self._agents[uid][0].direct()
            if not publish.directives:
                del self._directives[publish.job]

    async def _create_nodes(self) -> None:
        room = {"cpu": "4000", "memory": "40Ti", "ephemeral-storage": "40Ti", "pods": "2000"}
        for name in _node_names():
            metadata = {"name": name, "labels": {"kubernetes.io/hostname": name}}
            body = {"apiVersion": "v1", "kind": "Node", "metadata": metadata}
            await self._client.request("create", NODES, body=body)
            ready = {"type": "Ready", "status": "True", "reason": "Simulated", "lastHeartbeatTime": _now()}
            status = {"capacity": room, "allocatable": room, "conditions": [ready]}
            await self._client.request("patch", NODES, name=name, subresource="status", body={"status": status})

    async def _renew_leases(self) -> None:
        while True:
            for name in _node_names():
                spec = {"holderIdentity": name, "leaseDurationSeconds": 8, "renewTime": _now(micro=True)}
                body = {"apiVersion": LEASES.api_version, "kind": "Lease", "metadata": {"name": name}, "spec": spec}
                query = {"fieldManager": name, "force": "true"}
                await self._client.request("apply", LEASES, "kube-node-lease", name, query=query, body=body)
            await asyncio.sleep(2)


def _node_names() -> list[str]:
    return [f"fake-{i}" for i in range(NODE_COUNT)]


def _now(*, micro: bool = False) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000000Z" if micro else "%Y-%m-%dT%H:%M:%SZ", time.gmtime())
