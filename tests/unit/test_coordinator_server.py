import asyncio
import contextlib
import ssl
import sys
import time
import urllib.request

import pytest
from websockets.asyncio.client import connect, unix_connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from llmtrain_operator.clock import boot_time
from llmtrain_operator.contract import codec, wire
from llmtrain_operator.coordinator.bundle import Lead
from llmtrain_operator.coordinator.keys import with_keys
from llmtrain_operator.coordinator.main import server_tls
from llmtrain_operator.coordinator.server import Coordinator
from llmtrain_operator.coordinator.telemetry import Telemetry, serve_health
from llmtrain_operator.link import CoordinatorLink
from tests.support.loopback import PlainTokens, certificate, listening

DEADLINE = 0.6
SECRET = b"shared by all replicas"


class Station:
    """A coordinator on loopback, a controller's link to it, and clients that play agents."""

    def __init__(self, folder):
        self.certificate = certificate(folder)
        self.control = folder / "c.sock"
        self.updates = asyncio.Queue()
        self.telemetry = Telemetry()
        self.port = 0

    @contextlib.asynccontextmanager
    async def coordinator(self):
        coordinator = Coordinator(PlainTokens(), DEADLINE, self.telemetry, SECRET)
        tls = server_tls(self.certificate.cert, self.certificate.key)
        async with coordinator.serving("127.0.0.1", self.port, tls, self.control) as self.port:
            yield

    @contextlib.asynccontextmanager
    async def link(self, **options):
        link = CoordinatorLink(self.control, self.updates.put_nowait, **options)
        task = asyncio.create_task(link.run())
        try:
            if self.port:
                await listening(self.port)
            yield link
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def agent(self, token):
        tls = ssl.create_default_context(cadata=self.certificate.pem)
        headers = {"Authorization": f"Bearer {token}"}
        return connect(f"wss://127.0.0.1:{self.port}", ssl=tls, additional_headers=headers, proxy=None)

    async def update(self, uid, *, connected=True):
        async with asyncio.timeout(5):
            while True:
                update = await self.updates.get()
                if update.uid == uid and update.connected == connected:
                    return update


@pytest.fixture
def station(tmp_path):
    return Station(tmp_path)


def report(uid, **changes):
    fields = {"job": "ns/j", "pod": f"pod-{uid}", "uid": uid, "index": 0, "incarnation": 0, "host": "h"}
    return codec.encode(wire.Report(**{**fields, "state": "joining", **changes}))


def run(number):
    return wire.Directive("run", "go", wire.Round(number, (wire.Member(0, 0, "pod-a", "a", "h", 1),), 1))


def told(number):
    """What an agent hears: with the round's key, which the controller does not know."""
    return with_keys(wire.Publish("ns/j", {"a": run(number)}), SECRET).directives["a"]


async def test_reports_go_to_the_controller_and_directives_come_back(station):
    """An agent is told what holds when it connects, and every change after that."""
    async with station.coordinator(), station.link() as link:
        link.publish(wire.Publish("ns/j", {"a": run(1)}))
        async with station.agent("ns/pod-a/a") as agent:
            assert codec.decode(wire.Directive, await agent.recv()) == told(1)
            await agent.send(report("a", store_port=7))
            update = await station.update("a")
            assert (update.namespace, update.report.store_port) == ("ns", 7)
            link.publish(wire.Publish("ns/j", {"a": run(2)}))
            assert codec.decode(wire.Directive, await agent.recv()) == told(2)
        assert "ended" in (await station.update("a", connected=False)).detail


async def test_an_unproven_identity_is_refused_with_words(station):
    """A bad token gets 401 and the reason before any WebSocket exists."""
    async with station.coordinator(), station.link():
        with pytest.raises(InvalidStatus) as caught:
            await station.agent("nonsense")
        assert caught.value.response.status_code == 401
        assert b"no token of ours" in caught.value.response.body


async def test_a_report_for_another_pod_closes_the_connection(station):
    """The UID in the report must be the token's; nothing of it reaches the controller."""
    async with station.coordinator(), station.link():
        async with station.agent("ns/pod-a/a") as agent:
            await agent.send(report("b"))
            with pytest.raises(ConnectionClosed, match="token for a"):
                await agent.recv()
        assert station.updates.empty() or not station.updates.get_nowait().report


async def test_the_newest_connection_of_a_pod_replaces_the_older(station):
    """The older one is closed and its end is no loss of the member."""
    async with station.coordinator(), station.link(), station.agent("ns/pod-a/a") as old:
        await old.send(report("a"))
        await station.update("a")
        async with station.agent("ns/pod-a/a") as new:
            with pytest.raises(ConnectionClosed):
                await old.recv()
            await new.send(report("a", round=5))
            update = await asyncio.wait_for(station.updates.get(), 5)
            assert (update.connected, update.report.round) == (True, 5)


async def test_an_agent_that_goes_without_a_word_is_known_by_its_last_one(station):
    """One that breaks down while it reconnects is still told of with its job; of a stranger nothing is told."""
    async with station.coordinator(), station.link():
        async with station.agent("ns/pod-a/a") as agent:
            await agent.send(report("a", state="running", round=3))
            await station.update("a")
        assert (await station.update("a", connected=False)).report.round == 3
        async with station.agent("ns/pod-a/a"), station.agent("ns/pod-b/b"):
            pass  # b leaves first
        update = await asyncio.wait_for(station.updates.get(), 5)
        assert (update.uid, update.connected, update.report.round) == ("a", False, 3)


async def test_silence_ends_a_membership_and_a_word_renews_it(station):
    """An agent that stops reporting is given up after the deadline."""
    async with station.coordinator(), station.link():
        async with station.agent("ns/pod-a/a") as agent:
            await agent.send(report("a"))
            await station.update("a")
            assert "no heartbeat" in (await station.update("a", connected=False)).detail
        async with station.agent("ns/pod-a/a") as agent:
            await agent.send(report("a"))
            await station.update("a")


async def test_a_member_is_missed_as_soon_as_its_round_stands_still(station, monkeypatch):
    """Long before the deadline for silence alone; one that is heard again is missed no more."""
    monkeypatch.setattr(sys.modules[__name__], "DEADLINE", 60.0)

    def stepped(uid, index, step):
        progress = wire.Progress(index, 1, step=step, step_seconds=0.05)
        return report(uid, state="running", round=1, index=index, progress=progress)

    async with station.coordinator(), station.link(), station.agent("ns/pod-a/a") as a:
        async with station.agent("ns/pod-b/b") as b:
            for step in range(3):
                for agent, uid, index in ((a, "a", 0), (b, "b", 1)):
                    await agent.send(stepped(uid, index, step))
            began = time.monotonic()

            async def goes_on_saying_so():
                while True:
                    await a.send(stepped("a", 0, 2))
                    await asyncio.sleep(0.1)

            talking = asyncio.create_task(goes_on_saying_so())
            gone = await station.update("b", connected=False)
            assert gone.missed
            assert "its round stands still" in gone.detail
            assert 1.2 < time.monotonic() - began < 10
        async with station.agent("ns/pod-b/b") as b:
            await b.send(stepped("b", 1, 3))
            assert not (await station.update("b")).missed
        talking.cancel()


async def test_a_stalled_coordinator_blames_itself(station):
    """A loop that stood still for several deadlines loses no agent that kept sending."""
    async with station.coordinator(), station.link(), station.agent("ns/pod-a/a") as agent:
        await agent.send(report("a"))
        await station.update("a")
        time.sleep(3 * DEADLINE)  # noqa: ASYNC251 - the stall is what is tested
        for _ in range(6):
            await agent.send(report("a"))
            await asyncio.sleep(DEADLINE / 3)
        assert all(station.updates.get_nowait().connected for _ in range(station.updates.qsize()))


async def test_progress_reaches_the_controller_at_most_once_a_second(station):
    """Figures alone are thinned out, a change of state is not."""
    async with station.coordinator(), station.link(), station.agent("ns/pod-a/a") as agent:
        await agent.send(report("a", state="running", round=1))
        await station.update("a")
        for step in range(20):
            await agent.send(report("a", state="running", round=1, progress=wire.Progress(0, 1, step=step)))
        await agent.send(report("a", state="succeeded", round=1))
        updates = [await station.update("a")]
        while updates[-1].report.state != "succeeded":
            updates.append(await station.update("a"))
        assert len(updates) <= 2


async def test_a_restarted_coordinator_learns_everything_again(station):
    """The link publishes all jobs again, and agents are told of once they have come back."""
    async with station.coordinator():
        pass  # for its port
    async with contextlib.AsyncExitStack() as stack:
        async with station.coordinator():
            link = await stack.enter_async_context(station.link())
            link.publish(wire.Publish("ns/j", {"a": run(1)}))
            async with station.agent("ns/pod-a/a") as agent:
                assert codec.decode(wire.Directive, await agent.recv()) == told(1)
        async with station.coordinator():
            await listening(station.port)
            async with station.agent("ns/pod-a/a") as agent:
                assert codec.decode(wire.Directive, await asyncio.wait_for(agent.recv(), 5)) == told(1)
                await agent.send(report("a"))
                await station.update("a")


async def test_nobody_listens_while_no_controller_leads(station):
    """A standby refuses agents at once; when its controller leaves, the agents that it has are let go at once."""
    async with station.coordinator():
        with pytest.raises(ConnectionRefusedError):
            await station.agent("ns/pod-a/a")
        async with station.link():
            agent = await station.agent("ns/pod-a/a")
        with pytest.raises(ConnectionClosed):
            await asyncio.wait_for(agent.recv(), 2)
        with pytest.raises(ConnectionRefusedError):
            await station.agent("ns/pod-a/a")


async def test_a_controller_that_falls_silent_leads_no_more(station):
    """What ends a term is the time up to which the controller said that it leads, and each word may put that off."""
    first, last = boot_time() + 1.5, boot_time() + 3
    words = iter((first, last))
    claims = station.link(leads_until=lambda: next(words, last))
    async with station.coordinator(), claims, station.agent("ns/pod-a/a") as agent:
        with contextlib.suppress(ConnectionClosed):
            while boot_time() < last + 5:
                await agent.send(report("a"))
                await asyncio.sleep(DEADLINE / 3)
        assert last <= boot_time() < last + 1


async def test_a_new_term_knows_nothing_of_the_last(station):
    """Another replica may have led in between, so an agent is not told what held then, but what holds now."""
    async with station.coordinator():
        async with station.link() as link:
            link.publish(wire.Publish("ns/j", {"a": wire.Directive("wait", "not in a round yet")}))
            async with station.agent("ns/pod-a/a") as agent:
                assert codec.decode(wire.Directive, await agent.recv()).action == "wait"
        async with station.link() as link, station.agent("ns/pod-a/a") as agent:
            await agent.send(report("a"))
            await station.update("a")
            link.publish(wire.Publish("ns/j", {"a": run(2)}))
            assert codec.decode(wire.Directive, await agent.recv()) == told(2)


async def test_the_newest_controller_is_the_true_one(station):
    """A leftover of an earlier term is thrown out, with what it said."""
    async with station.coordinator(), station.link() as old:
        old.publish(wire.Publish("ns/j", {"a": run(1)}))
        async with unix_connect(str(station.control), uri="ws://coordinator/") as new:
            await new.send(codec.encode(Lead(boot_time() + 60)))
            async with asyncio.timeout(5):
                while old.connected:  # noqa: ASYNC110 - the link tells nobody but its controller
                    await asyncio.sleep(0.01)


async def test_health_and_metrics_are_served_over_http(station):
    """A probe gets ok, a scraper the gauges."""

    def get(url):
        return urllib.request.urlopen(url, timeout=5).read().decode()

    async with serve_health(station.telemetry, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        assert await asyncio.to_thread(get, f"http://127.0.0.1:{port}/healthz") == "ok\n"
        assert "llmtrain_agents_connected 0.0" in await asyncio.to_thread(get, f"http://127.0.0.1:{port}/metrics")
