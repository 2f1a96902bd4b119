import asyncio
import contextlib
import dataclasses
import signal
import socket

import pytest

from llmtrain_operator.contract import codec, names, wire
from llmtrain_operator.coordinator.main import server_tls
from llmtrain_operator.coordinator.server import Coordinator
from llmtrain_operator.coordinator.telemetry import Telemetry
from llmtrain_operator.link import CoordinatorLink
from llmtrain_trainer.agent.environment import Environment
from llmtrain_trainer.agent.membership import Membership
from llmtrain_trainer.agent.progress import ProgressSocket
from tests.support.loopback import PlainTokens, certificate

FAILURE = wire.Failure(names.REASON_KILLED, "killed", round=1)

SECRET = b"shared by all replicas"


class Ground:
    """A coordinator, and the environment of a pod that knows it."""

    def __init__(self, folder, shared=None):
        self.folder = folder
        self.certificate = shared or certificate(folder)
        self.updates = asyncio.Queue()
        self.token = folder / "token"
        self.token.write_text("ns/job-0-0/uid-0")
        self.port = 0

    @contextlib.asynccontextmanager
    async def coordinator(self):
        tls = server_tls(self.certificate.cert, self.certificate.key)
        control = self.folder / "c.sock"
        coordinator = Coordinator(PlainTokens(), 5.0, Telemetry(), SECRET)
        async with coordinator.serving("127.0.0.1", self.port, tls, control) as self.port:
            link = CoordinatorLink(control, self.updates.put_nowait)
            task = asyncio.create_task(link.run())
            yield link
            task.cancel()

    def environment(self, **changes):
        urls = (f"wss://127.0.0.1:{self.port}",)
        plain = Environment(
            "ns/job", "job-0-0", "uid-0", 0, 0, "127.0.0.1", 1, urls, self.certificate.pem, self.token, 5, {}
        )
        return dataclasses.replace(plain, **changes)

    async def report(self, condition=bool):
        async with asyncio.timeout(10):
            while True:
                update = await self.updates.get()
                if update.connected and update.report and condition(update.report):
                    return update.report


@pytest.fixture
def ground(tmp_path):
    return Ground(tmp_path)


@contextlib.asynccontextmanager
async def member(environment, **options):
    membership = Membership(environment, **options)
    membership.start()
    try:
        yield membership
    finally:
        await asyncio.to_thread(membership.close)


def round_of(number):
    return wire.Round(number, (wire.Member(0, 0, "job-0-0", "uid-0", "127.0.0.1", 1),), 1)


async def order(membership, kind):
    async with asyncio.timeout(10):
        while membership.order().kind != kind:
            await asyncio.to_thread(membership.wait, 0.1)
    return membership.order()


async def test_a_member_reports_each_state_and_hears_each_directive(ground):
    """Joining, running, failed and joining again reach the controller; a failure is kept until a later round."""
    async with ground.coordinator() as link, member(ground.environment()) as membership:
        membership.join(4711)
        assert (await ground.report(lambda r: r.store_port == 4711)).state == "joining"
        link.publish(wire.Publish("ns/job", {"uid-0": wire.Directive("run", "go", round_of(1))}))
        entered = (await order(membership, "enter")).round
        assert dataclasses.replace(entered, key="") == round_of(1)
        assert entered.key
        membership.enter(round_of(1), 4712)
        assert (await ground.report(lambda r: r.state == "running")).round == 1
        membership.fail(FAILURE)
        membership.join(4712)
        assert (await ground.report(lambda r: r.state == "joining")).failure == FAILURE
        assert membership.order().kind == "stay"
        membership.enter(round_of(2), 4713)
        assert (await ground.report(lambda r: r.round == 2)).failure is None


async def test_who_told_it_to_end_reaches_the_controller_at_once(ground):
    """A node that shuts down tells the agent alone; its state stays what it is until the workers have left."""
    async with ground.coordinator(), member(ground.environment()) as membership:
        membership.enter(round_of(1), 4712)
        assert (await ground.report(lambda r: r.state == "running")).leaving == ""
        membership.request_stop("SIGTERM")
        told = await ground.report(lambda r: r.leaving)
        assert (told.leaving, told.state, told.round) == ("SIGTERM", "running", 1)
        assert membership.order().kind == "stop"
        membership.end()
        assert (await ground.report(lambda r: r.state == "stopped")).leaving == "SIGTERM"


async def test_the_leader_is_followed_wherever_it_listens(ground):
    """A standby refuses; the leader's certificate is for the first URL's name, by whichever address it was found."""
    async with ground.coordinator():
        with socket.socket() as standby:
            standby.bind(("127.0.0.1", 0))
            urls = (f"wss://127.0.0.1:{standby.getsockname()[1]}", f"wss://localhost:{ground.port}")
            async with member(ground.environment(coordinators=urls)) as membership:
                membership.join(1)
                await ground.report()


async def test_a_member_goes_over_to_the_next_leader(ground, tmp_path):
    """As soon as one listens, and with everything that it has to say; until then it stays as it is."""
    (tmp_path / "other").mkdir()
    next_ground = Ground(tmp_path / "other", ground.certificate)
    async with contextlib.AsyncExitStack() as stack:
        async with ground.coordinator(), next_ground.coordinator():
            pass  # for their ports
        urls = tuple(f"wss://127.0.0.1:{port}" for port in (ground.port, next_ground.port))
        membership = await stack.enter_async_context(member(ground.environment(coordinators=urls)))
        async with ground.coordinator():
            membership.enter(round_of(3), 1)
            await ground.report(lambda r: r.state == "running")
        assert membership.order().kind == "stay"
        async with next_ground.coordinator():
            report = await next_ground.report()
            assert (report.state, report.round) == ("running", 3)


async def test_progress_of_the_current_round_is_reported(ground, tmp_path):
    """Workers' datagrams show up in heartbeats; those of another round and nonsense do not."""
    async with ground.coordinator(), member(ground.environment()) as membership:
        membership.enter(round_of(3), 1)
        ProgressSocket(tmp_path / "p", membership.on_progress)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as worker:
            for text in (
                codec.encode(wire.Progress(0, 3, step=7, loss=2.5)),
                codec.encode(wire.Progress(1, 3, step=7, loss=2.5, pace=wire.Pace(1, 0.5, 1.0))),
                codec.encode(wire.Progress(0, 2, step=99)),
                "nonsense",
            ):
                worker.sendto(text.encode(), str(tmp_path / "p"))
        report = await ground.report(lambda r: r.paces)
        assert (report.progress.rank, report.progress.step, report.progress.loss) == (0, 7, 2.5)
        assert report.paces == (wire.Pace(1, 0.5, 1.0),), "also those of workers that do not stand for the member"
        membership.enter(round_of(4), 1)
        assert membership.report.paces == ()


async def test_what_workers_said_last_is_reported_with_their_end(ground, tmp_path):
    """They end faster than heartbeats come, and the operator closes the round with the report that says so."""
    async with ground.coordinator(), member(ground.environment()) as membership:
        told = ProgressSocket(tmp_path / "p", membership.on_progress)
        membership.join(1)
        for number, last, end in (
            (3, 9, membership.leave),
            (4, 19, lambda: membership.fail(dataclasses.replace(FAILURE, round=4))),
            (5, 29, lambda: membership.join(2)),
        ):
            membership.enter(round_of(number), 1)
            await ground.report(lambda r, number=number: r.round == number and r.progress is None)
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as worker:
                for step in range(last - 5, last + 1):
                    worker.sendto(codec.encode(wire.Progress(0, number, step=step)).encode(), str(tmp_path / "p"))
            told.drain()
            end()
            report = await ground.report(lambda r: r.state != "running")
            assert (report.round, report.progress.step) == (number, last)


async def test_the_last_report_arrives_before_the_end(ground):
    """Closing sends the final state first."""
    async with ground.coordinator():
        async with member(ground.environment()) as membership:
            await ground.report()
            membership.end()
            await asyncio.to_thread(membership.close)
        assert (await ground.report(lambda r: r.state == "stopped")).uid == "uid-0"


async def test_a_rotated_token_is_used_for_the_next_attempt(ground):
    """An agent that was refused gets in as soon as its token file holds a good one."""
    good = ground.token.read_text()
    ground.token.write_text("expired")
    async with ground.coordinator(), member(ground.environment()) as membership:
        await asyncio.sleep(0.5)
        assert membership.alone_for > 0
        ground.token.write_text(good)
        await ground.report()
        assert membership.alone_for == 0


@pytest.mark.parametrize("fault", ["unknown CA", "another host"])
async def test_a_coordinator_that_cannot_prove_itself_gets_no_token(ground, fault, tmp_path):
    """The agent talks to nobody whose certificate is not for that address by that CA."""
    async with ground.coordinator():
        if fault == "unknown CA":
            (tmp_path / "other").mkdir()
            changes = {"ca": certificate(tmp_path / "other").pem}
        else:
            changes = {"coordinators": (f"wss://localhost:{ground.port}",)}
        async with member(ground.environment(**changes)) as membership:
            await asyncio.sleep(0.7)
            assert membership.alone_for > 0.5
        assert ground.updates.empty()


async def test_all_addresses_are_tried(ground):
    """A coordinator at the second address is found."""
    async with ground.coordinator():
        environment = ground.environment()
        async with member(
            dataclasses.replace(environment, coordinators=("wss://127.0.0.1:9", *environment.coordinators))
        ):
            await ground.report()


async def test_who_is_to_persist_what_is_in_memory_is_not_forgotten(ground):
    """The operator says so while the pods are there, and knows nobody any more when they are being deleted."""
    async with ground.coordinator() as link, member(ground.environment()) as membership:
        link.publish(wire.Publish("ns/job", {"uid-0": wire.Directive("stop", "suspended", persist="uid-0")}))
        await order(membership, "stop")
        link.publish(wire.Publish("ns/job", {"uid-0": wire.Directive("stop", "it is being deleted")}))
        async with asyncio.timeout(10):
            while membership.directive.reason != "it is being deleted":
                await asyncio.to_thread(membership.wait, 0.1)
        assert membership.directive.persist == "uid-0"


async def test_a_stop_outlives_the_coordinator(ground):
    """Signals and directives to stop are final; torchrun is told by a callback, once."""
    told = []
    async with ground.coordinator() as link:
        link.publish(wire.Publish("ns/job", {"uid-0": wire.Directive("stop", "suspended")}))
        async with member(ground.environment(), on_stop=lambda: told.append(signal.SIGTERM)) as membership:
            assert (await order(membership, "stop")).reason == "suspended"
            link.publish(wire.Publish("ns/job", {"uid-0": wire.Directive("stop", "deleted")}))
            await asyncio.sleep(0.2)
            assert told == [signal.SIGTERM]
    lonely = Membership(ground.environment())
    lonely.request_stop("SIGTERM")
    assert lonely.order().kind == "stop"
