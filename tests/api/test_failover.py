"""Two operator processes and a real API server: one leads, and another follows it however it ends."""

import asyncio
import contextlib
import signal
import time
import uuid

import pytest

from llmtrain_operator.cluster.client import Client
from llmtrain_operator.cluster.lease import Lease
from llmtrain_operator.cluster.resources import JOBS, LEASES
from llmtrain_operator.contract import names
from llmtrain_operator.coordinator.server import Coordinator
from llmtrain_operator.coordinator.telemetry import Telemetry
from llmtrain_operator.election import DURATION, RENEW_DEADLINE
from llmtrain_operator.ports import Unavailable
from tests.support.loopback import PlainTokens, listening
from tests.support.operator_process import Replica, holder_of, replicas
from tests.support.tcp_proxy import cable_to

BUDGET = 10.0
"""Seconds within which a standby has taken over and acts."""
SPEC = {"entrypoint": {"script": "train.py"}, "suspend": True}


class Pair:
    """Two replicas, each with a coordinator beside it, and what they do. The first leads to begin with."""

    def __init__(self, client, namespace, folder, kubeconfigs):
        self.client, self.namespace, self.lease = client, namespace, f"{namespace}/operator"
        self.replicas = [
            Replica(kubeconfig, folder / str(number), self.lease, namespace)
            for number, kubeconfig in enumerate(kubeconfigs)
        ]
        self.ports = {}

    @contextlib.asynccontextmanager
    async def running(self):
        async with contextlib.AsyncExitStack() as stack:
            for replica in self.replicas:
                coordinator = Coordinator(PlainTokens(), 5.0, Telemetry())
                serving = coordinator.serving("127.0.0.1", 0, None, replica.control)
                self.ports[replica] = await stack.enter_async_context(serving)
            await stack.enter_async_context(replicas(*self.replicas))
            leader = await self.leader()
            self.replicas.sort(key=lambda replica: replica is not leader)
            yield

    async def leader(self, *, within=BUDGET, but=None):
        """The replica that holds the Lease, once one (other than `but`) does."""
        async with asyncio.timeout(within):
            while True:
                holder = await holder_of(self.client, self.lease)
                for replica in self.replicas:
                    if replica is not but and replica.holds(holder):
                        return replica
                await asyncio.sleep(0.05)

    async def create(self):
        """A new job that the operator has something to say about."""
        name = f"j-{uuid.uuid4().hex[:6]}"
        body = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": name}, "spec": SPEC}
        await self.client.request("create", JOBS, self.namespace, body=body)
        return name

    async def state(self, name):
        return ((await self.client.request("get", JOBS, self.namespace, name)).get("status") or {}).get("state")

    async def until_handled(self, name, within=BUDGET):
        async with asyncio.timeout(within):
            while await self.state(name) != "Suspended":  # noqa: ASYNC110 - only the server knows
                await asyncio.sleep(0.05)


@pytest.fixture
async def pair(client, namespace, kubeconfig, tmp_path):
    pair = Pair(client, namespace, tmp_path, [kubeconfig, kubeconfig])
    async with pair.running():
        yield pair


async def test_a_leader_is_succeeded_by_the_standby(pair):
    """At once if it is told to end, as in an upgrade, because it gives the Lease back; within the budget if it is
    killed. The standby was ready all along, and looks after a job that nobody had seen."""
    leader, standby = pair.replicas
    await pair.until_handled(await pair.create())
    await listening(pair.ports[leader])
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", pair.ports[standby])
    began = time.monotonic()
    assert await leader.end() == 0
    await pair.until_handled(await pair.create(), within=4)
    print(f"told to end -> a new job is handled: {time.monotonic() - began:.1f} s")
    assert await pair.leader() is standby
    await listening(pair.ports[standby])
    await leader.start()
    standby.signal(signal.SIGKILL)
    began = time.monotonic()
    await pair.until_handled(await pair.create())
    print(f"killed -> a new job is handled: {time.monotonic() - began:.1f} s")
    assert await pair.leader() is leader


async def test_a_leader_that_stood_still_writes_nothing_when_it_wakes_up(pair):
    """While its successor holds the Lease it stays a standby, although there is work and it believed to lead."""
    first, second = pair.replicas
    await pair.until_handled(await pair.create())
    first.signal(signal.SIGSTOP)
    await pair.leader(but=first)
    second.signal(signal.SIGSTOP)  # so that only the one that wakes up could write
    stopped = time.monotonic()
    waiting = await pair.create()
    first.signal(signal.SIGCONT)
    while time.monotonic() - stopped < DURATION - 2:
        assert await pair.state(waiting) is None
        await asyncio.sleep(0.1)
    await pair.until_handled(waiting)
    assert first.holds(await holder_of(pair.client, pair.lease))
    assert "does not lead any more" in first.log()
    second.signal(signal.SIGCONT)
    async with asyncio.timeout(5):
        while "does not lead any more" not in second.log():  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.1)
    assert second.process.returncode is None


async def test_a_leader_without_an_api_server_stops_before_another_starts(client, namespace, kubeconfig, tmp_path):
    """Cut off alone, it lets its agents go by its own clock; the standby takes over; healed, it stands by."""
    async with contextlib.AsyncExitStack() as stack:
        cables = {}
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            cable, copy = await stack.enter_async_context(cable_to(kubeconfig, tmp_path / name))
            cables[copy] = cable
        pair = Pair(client, namespace, tmp_path, cables)
        await stack.enter_async_context(pair.running())
        leader, standby = pair.replicas
        await listening(pair.ports[leader])
        cable = cables[leader.kubeconfig]
        await cable.pull()
        pulled = time.monotonic()
        await _deaf(pair.ports[leader])
        assert time.monotonic() - pulled < RENEW_DEADLINE + 1
        assert leader.holds(await holder_of(client, pair.lease)), "the other waits longer than this one acts"
        await pair.until_handled(await pair.create())
        assert await pair.leader() is standby
        await cable.plug()
        async with asyncio.timeout(20):
            while not leader.stands_by(await holder_of(client, pair.lease)):  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.1)


async def _deaf(port):
    """Return when nobody listens on the port any more."""
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
        except ConnectionRefusedError:
            return
        except ConnectionResetError:  # in the very moment in which it was closed
            continue
        await asyncio.sleep(0.02)


async def test_writes_end_with_the_claim_and_not_with_the_news_of_it(client, namespace):
    """A leader whose time is up by its clock cannot write, before anybody has told it so."""
    now = [0.0]
    lease = Lease(client, namespace, "operator", "me", clock=lambda: now[0])
    began = asyncio.Event()

    async def lead():
        began.set()
        await asyncio.Event().wait()

    fenced = Client(client._api, may_write=lease.held)
    body = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": "j"}, "spec": SPEC}
    with pytest.raises(Unavailable, match="does not lead"):
        await fenced.request("create", JOBS, namespace, body=body)
    task = asyncio.create_task(lease.run(lead))
    await asyncio.wait_for(began.wait(), 10)
    await fenced.request("create", JOBS, namespace, body=body)
    now[0] += RENEW_DEADLINE
    with pytest.raises(Unavailable, match="does not lead"):
        await fenced.request("delete", JOBS, namespace, "j")
    assert await fenced.request("get", JOBS, namespace, "j")
    task.cancel()
    await asyncio.wait([task])
    spec = (await client.request("get", LEASES, namespace, "operator"))["spec"]
    assert (spec["holderIdentity"], spec["leaseTransitions"]) == ("", 1)


async def test_a_leader_that_gives_up_is_succeeded_before_it_stands_again(client, namespace):
    """What it gave up for may be cured by a replica elsewhere."""
    turns, over = asyncio.Queue(), asyncio.Event()

    def lead(name):
        async def term():
            turns.put_nowait(name)
            await over.wait()

        return term

    leases = {name: Lease(client, namespace, "operator", name) for name in "ab"}
    first = asyncio.create_task(leases["a"].run(lead("a")))
    assert await asyncio.wait_for(turns.get(), 5) == "a"
    second = asyncio.create_task(leases["b"].run(lead("b")))
    await asyncio.sleep(0.5)  # until it stands by
    over.set()
    over = asyncio.Event()
    assert await asyncio.wait_for(turns.get(), 3) == "b"
    assert (leases["a"].held(), leases["b"].held()) == (False, True)
    for task in (first, second):
        task.cancel()
    await asyncio.wait([first, second])
