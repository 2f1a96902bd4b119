"""A member measures its node and its network, and helps others to measure theirs: real processes, real sockets."""

from __future__ import annotations

import dataclasses
import os
import resource
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from llmtrain_operator.contract.wire import Check, Neighbour
from llmtrain_operator.preflight import shortfalls
from llmtrain_trainer.agent import exchange, preflight
from llmtrain_trainer.agent.environment import Environment
from llmtrain_trainer.agent.exchange import Responder, measure
from llmtrain_trainer.agent.preflight import NodeCheck, open_preflight
from llmtrain_trainer.flash.protocol import PeerGone
from tests.support.slow_link import slow_link

SECONDS = 10.0
BOUND = SECONDS + 50.0
"""With the imports of torch, on a machine that has other things to do."""


def environment(**preflight) -> Environment:
    spec = {"recovery": {"preflight": preflight}}
    return Environment("ns/j", "j-0-1", "uid", 0, 1, "127.0.0.1", 1, ("wss://x",), "", Path("token"), 5, spec)


def pause() -> bool:
    """Nothing else is to be done."""
    time.sleep(0.02)
    return False


def neighbour(of: NodeCheck | Responder, **changes) -> Neighbour:
    at = of.offer if isinstance(of, NodeCheck) else of
    return dataclasses.replace(Neighbour("j-1-1", "127.0.0.1", at.port, at.key), **changes)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMTRAIN_DATA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def responder():
    responder = Responder("127.0.0.1")
    responder.start()
    yield responder
    responder.close()


def test_a_node_is_measured_within_its_time(cache):
    """Every figure is there; nothing is left on the disk, and no process."""
    me, other = (NodeCheck(environment(), SECONDS) for _ in range(2))
    began = time.monotonic()
    found = me.run(Check(1, neighbour(other)), pause)
    assert time.monotonic() - began < BOUND
    assert (found.attempt, found.error, found.device, found.neighbour) == (1, "", "cpu", "j-1-1")
    assert min(found.matmul, found.memory, found.network, found.disk) > 0
    assert 0 < found.seconds < BOUND
    assert (found.port, found.key) == (me.offer.port, me.offer.key)
    assert list(cache.iterdir()) == []
    assert children() == []


def test_a_node_behind_a_slow_link_is_named(monkeypatch):
    """The same check on the same machine, but one has a connection of 2 MB/s: its peers make it the bad one."""
    monkeypatch.setattr(preflight, "_measure_node", lambda found, *_: found.update(device="cpu", memory=10.0) or "")
    nodes = {str(number): NodeCheck(environment(), SECONDS) for number in range(3)}
    found = {name: nodes[name].run(Check(1, neighbour(nodes["2"])), pause) for name in ("0", "1")}
    with slow_link(nodes["0"].offer.port, 2e6) as port:
        found["2"] = nodes["2"].run(Check(1, neighbour(nodes["0"], port=port)), pause)
    bad = shortfalls(found, 0.05)  # a busy machine makes some of the difference, but not that much
    assert list(bad) == ["2"]
    assert 0 < found["2"].network < 5
    assert "all-reduce with a neighbour (j-1-1)" in bad["2"]


def test_a_disk_without_room_is_an_error_with_the_systems_words():
    """As with a full disk, a write does not succeed: the node's other figures do not count."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    node = NodeCheck(environment(), SECONDS)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))
    try:
        found = node.run(Check(2), pause)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert found.error == "disk: [Errno 27] File too large"
    assert list(shortfalls({"bad": found}, 0.5)) == ["bad"]


def test_what_takes_too_long_is_ended_and_named(monkeypatch):
    """A check has an end, whatever hangs in it: here the process stands still."""
    monkeypatch.setattr(preflight, "IMPORTS_LIMIT", 1.0)

    def freeze() -> bool:
        for pid in children():
            os.kill(pid, signal.SIGSTOP)
        return pause()

    found = NodeCheck(environment(), SECONDS).run(Check(1, Neighbour("j-1-1", "127.0.0.1", 1, "")), freeze)
    assert (found.error, found.network) == ("device was not done after 1 s", None)
    assert found.seconds < 5
    assert children() == []


def test_who_is_called_away_leaves_the_check():
    """An order that is more important ends it at once; nothing is reported."""
    looks = iter([False, False, True])
    assert NodeCheck(environment(), SECONDS).run(Check(1), lambda: next(looks)) is None
    assert children() == []


def test_a_neighbour_that_is_gone_is_a_network_of_nothing(responder):
    """Others will reach theirs: that decides whose fault it was."""
    responder.close()
    node = NodeCheck(environment(), SECONDS)
    found = node._measure_network(Check(1, neighbour(responder)))
    assert found["network"] == 0.0
    assert "j-1-1: 127.0.0.1:" in found["neighbour"]


def test_only_who_knows_the_key_is_answered(responder):
    """Whoever else connects gets nothing, and does not disturb those who do."""
    with pytest.raises(PeerGone):
        measure(neighbour(responder, key="another"), 0.1)
    assert measure(neighbour(responder), 0.1) > 0


def test_the_largest_vector_is_bounded(responder):
    """A neighbour is not made to hold what the other side asks for."""
    by = exchange.Pass(0, responder.key)
    with exchange.protocol.call(f"127.0.0.1:{responder.port}", by) as link:
        assert exchange.protocol.receive(link) == {"ready": True}
        exchange.protocol.send(link, {"reduce": exchange.MOST + 1})
        with pytest.raises(PeerGone):
            exchange.protocol.receive(link)


def test_a_neighbour_without_time_is_no_bad_network(responder):
    """It answers one after the other: who does not get a turn has measured nothing."""
    with responder._turn:
        assert measure(neighbour(responder), 0.1) is None
    assert measure(neighbour(responder), 0.1) > 0


def test_a_neighbour_that_falls_silent_costs_no_more_than_the_time():
    """It died, or its node did: no figure, no wait."""
    with socket.create_server(("127.0.0.1", 0)) as silent:

        def stall() -> None:
            link, _ = silent.accept()
            exchange.protocol.admit(link, {0: "key"}.get)
            exchange.protocol.send(link, {"ready": True})
            held.append(link)

        held: list[socket.socket] = []
        threading.Thread(target=stall, daemon=True).start()
        began = time.monotonic()
        with pytest.raises(PeerGone):
            measure(Neighbour("j-1-1", "127.0.0.1", silent.getsockname()[1], "key"), 0.2)
        assert time.monotonic() - began < 5
        held[0].close()


@pytest.mark.parametrize(
    ("settings", "measures"),
    [
        pytest.param({}, False, id="not said"),
        pytest.param({"enabled": False, "seconds": 10}, False, id="off"),
        pytest.param({"enabled": True, "seconds": 10}, True, id="on"),
    ],
)
def test_an_agent_offers_the_check_if_the_job_asks_for_it(settings, measures):
    """Else it neither listens nor says that it could."""
    node = open_preflight(environment(**settings))
    assert (node is not None) == measures
    assert node is None or (node.offer.attempt == 0 and node.offer.port and node.offer.key)


def children() -> list[int]:
    """Processes that this one has started and that are there."""
    text = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    return [pid for pid in map(int, text.split()) if b"measuring" in Path(f"/proc/{pid}/cmdline").read_bytes()]
