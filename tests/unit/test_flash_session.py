"""Snapshots as the training loop sees them: real slots and a real store, one worker, no agent."""

import os
import time

import pytest
import torch

from llmtrain_operator.contract import names
from llmtrain_trainer.checkpoint.cadence import Votes
from llmtrain_trainer.checkpoint.pieces import MASTER, Piece
from llmtrain_trainer.config import EverySteps, Flash
from llmtrain_trainer.errors import ConfigError
from llmtrain_trainer.flash import notices, rooms
from llmtrain_trainer.flash.engines import Restored
from llmtrain_trainer.flash.engines.native import Native
from llmtrain_trainer.flash.notices import Notices
from llmtrain_trainer.flash.rooms import Rooms
from llmtrain_trainer.flash.session import Session
from llmtrain_trainer.flash.slot import Slot, StoreFull
from llmtrain_trainer.flash.store import Store
from llmtrain_trainer.progress import Reporter


class Alone:
    """A worker without others."""

    rank, world_size, is_first, device = 0, 1, True, torch.device("cpu")

    def gather(self, value):
        return [value]

    def from_first(self, value):
        return value

    def sums(self, *values):
        return [float(value) for value in values]


class State:
    """One tensor."""

    def __init__(self, size=1000):
        self.weight = torch.zeros(size)

    def pieces(self):
        return [Piece("w", MASTER, 0, self.weight)]

    expected = pieces

    def identity(self):
        return (self.weight.data_ptr(),)

    def shapes(self):
        return {"parameters": {"w": [len(self.weight)]}}

    def numbers(self):
        return {"optimizer": {}}

    def rng(self):
        return {"torch": "x"}

    def load(self, scalars, fill):
        assert scalars["parameters"] == self.shapes()["parameters"]
        fill(self.pieces())

    def load_rng(self, stored):
        assert stored == {"torch": "x"}

    def reseed(self, step):
        raise AssertionError(f"the world is the same at step {step}")


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv(names.ENV_JOB_UID, "job")
    monkeypatch.delenv(names.ENV_FLASH_SOCKET, raising=False)
    return Store(tmp_path, "job")


def session_of(store, state, number=1, spare=0, **flash):
    os.environ[names.ENV_ROUND] = str(number)
    try:
        reporter = Reporter(0, 100)
    finally:
        del os.environ[names.ENV_ROUND]
    session = Session(Flash(**flash), Alone(), reporter, store, spare)
    session.recall.survey()
    recalled = session.recall.load(state, 0)
    session.begin(state, {"config": {}}, recalled)
    return session, recalled


def until_ready(session):
    for _ in range(500):
        if len(session.snapshots._rooms) >= 3:
            return
        time.sleep(0.01)
    raise AssertionError("no memory")


def boundary(session, state, step, needed=False):
    """A step, and what is done after it."""
    state.weight.fill_(step)
    votes = Votes(**session.votes(step))
    return session.settle(votes, state, {"step": step}, needed=needed)


def told(session):
    return session._reporter.progress.flash


def test_steps_are_taken_committed_and_come_back(store):
    """The next round goes on at the newest, bit for bit, and keeps it until it has its own."""
    state = State()
    session, recalled = session_of(store, state)
    assert recalled is None
    until_ready(session)
    assert [boundary(session, state, step) for step in range(1, 6)] == [True] * 5
    assert (told(session).step, told(session).committed) == (5, 4)
    again = State()
    session, recalled = session_of(store, again, number=2)
    assert recalled.edition.step == 5
    assert torch.equal(again.weight, torch.full((1000,), 5.0))
    assert recalled.source == "its own memory (step 5 of round 1)"
    until_ready(session)
    assert told(session).kept == 5
    assert [held.header.edition.step for held in store.scan()[0]] == [5]
    boundary(session, again, 6)
    boundary(session, again, 7)
    assert {held.header.edition.step for held in store.scan()[0]} >= {6, 7}


def test_a_snapshot_that_is_read_stays(store):
    """Until it is released: a durable checkpoint is written from it meanwhile."""
    state = State()
    session, _ = session_of(store, state, spare=1)
    until_ready(session)
    boundary(session, state, 1, needed=True)
    _, data = session.snapshots.read(1)
    before = bytes(data)
    for step in range(2, 8):
        boundary(session, state, step)
    assert bytes(data) == before
    assert session.snapshots.read(3) is None
    session.release(1)
    assert store.durable_step == 1
    for step in range(8, 12):
        boundary(session, state, step)
    assert bytes(data) != before


def test_only_every_so_many_steps(store):
    """A number is obeyed; a step that is to be saved has one all the same."""
    state = State()
    session, _ = session_of(store, state, every_steps=EverySteps(3))
    until_ready(session)
    taken = [boundary(session, state, step) and session.snapshots.newest for step in range(1, 8)]
    assert taken == [1, 1, 1, 4, 4, 4, 7]
    assert boundary(session, state, 8, needed=True)
    assert session.snapshots.newest == 8
    assert (told(session).every, told(session).reason) == (3, "everySteps is 3")


def test_while_there_is_no_memory_yet_snapshots_are_put_off_and_counted(store, monkeypatch):
    """Training does not wait for it."""
    monkeypatch.setattr(Rooms, "reserve", lambda *_: None)
    state = State()
    session, _ = session_of(store, state)
    assert not boundary(session, state, 1)
    assert not boundary(session, state, 2)
    assert told(session).put_off == 2


def full_for(monkeypatch, method):
    """Make a method of slots raise `StoreFull`; the list's elements say how often it did, and clearing ends it."""
    works, calls = getattr(Slot, method), []
    monkeypatch.setattr(rooms, "_PAUSE", 0.01)

    def full(*args):
        calls.append(args)
        raise StoreFull(1000)

    monkeypatch.setattr(Slot, method, full)
    return calls, lambda: monkeypatch.setattr(Slot, method, works)


def test_a_store_that_fills_up_costs_commits_and_not_training(store, monkeypatch):
    """What was committed stays; the reason is told; with room again the candidate gets its head and the job goes on."""
    state = State()
    session, _ = session_of(store, state)
    until_ready(session)
    boundary(session, state, 1)
    boundary(session, state, 2)
    monkeypatch.setattr(notices, "_REMINDER", 0.0)
    calls, end = full_for(monkeypatch, "publish")
    boundary(session, state, 3)
    assert boundary(session, state, 4)
    assert "more bytes are needed" in told(session).trouble
    assert {held.header.edition.step for held in store.scan()[0]} >= {told(session).committed}
    assert len(calls) > 2
    end()
    for step in range(5, 9):
        boundary(session, state, step)
    assert (told(session).committed, told(session).trouble) == (7, "")


def test_a_candidate_whose_head_is_damaged_gets_a_new_one(store, monkeypatch):
    """The agent cannot copy what it cannot read: without that nothing more would ever be committed."""
    state = State()
    session, _ = session_of(store, state)
    until_ready(session)
    monkeypatch.setattr(notices, "_REMINDER", 0.0)
    monkeypatch.setattr(Notices, "is_safe", lambda *_: False)
    boundary(session, state, 1)
    (head,) = store.root.glob("*.head")
    head.write_bytes(b"x" + head.read_bytes()[1:])
    assert store.scan()[0] == ()
    boundary(session, state, 2)
    assert sorted(held.header.edition.step for held in store.scan()[0]) == [1, 2]


def test_a_candidate_that_could_not_be_taken_is_given_up(store, monkeypatch):
    """By all alike, or no step would ever be committed again; there is another as soon as there is memory."""
    state = State(100)
    session, _ = session_of(store, state)
    until_ready(session)
    boundary(session, state, 1)
    _, end = full_for(monkeypatch, "reserve")
    state.weight = torch.ones(5000)
    boundary(session, state, 2)
    assert (session.snapshots.lost, session.snapshots.pins.committed) == (True, 1)
    assert session.votes(3)["lost"]
    boundary(session, state, 3)
    assert "more bytes are needed" in told(session).trouble
    assert session.snapshots.read(3) is None
    end()
    until_ready(session)
    for step in range(4, 8):
        boundary(session, state, step)
    assert (told(session).committed, told(session).trouble) == (6, "")


def test_memory_that_is_not_there_yet_is_asked_for_again(store, monkeypatch):
    """Copies of the last round take it until this round has something of its own."""
    _, end = full_for(monkeypatch, "reserve")
    state = State()
    session, _ = session_of(store, state)
    while session.snapshots.trouble is None:
        time.sleep(0.001)
    votes = session.votes(1)
    assert (votes["unready"], votes["troubled"]) == (True, True)
    end()
    until_ready(session)
    assert not session.votes(1)["unready"]
    assert told(session).trouble == ""


def test_a_store_that_is_too_small_is_an_error_with_the_bytes_that_are_needed(store, monkeypatch):
    """Before the first step."""
    monkeypatch.setattr(Store, "capacity", 50_000)
    with pytest.raises(ConfigError, match=r"spec\.checkpoint\.flash: snapshots need \d{6} bytes .* there are 50000"):
        session_of(store, State())


def test_a_store_that_is_too_small_for_fewer_members_ends_snapshots_and_not_the_job(store, monkeypatch):
    """It was made for more of them; durable checkpoints go on."""
    monkeypatch.setattr(Store, "capacity", 50_000)
    state = State()
    session, _ = session_of(store, state, number=2)
    assert session.votes(1)["troubled"]
    assert not boundary(session, state, 1)
    assert "snapshots need" in told(session).trouble


def test_the_last_snapshot_of_a_round_is_waited_for(store):
    """Those who leave know that what they leave is safe."""
    state = State()
    session, _ = session_of(store, state, every_steps=EverySteps(10))
    until_ready(session)
    for step in range(1, 5):
        boundary(session, state, step)
    state.weight.fill_(4)
    session.take_last(state, {"step": 4})
    assert session.wait_until_safe(4)
    assert told(session).committed == 4


def test_without_memory_nobody_waits_for_the_last_snapshot(store, monkeypatch):
    """What is left of the grace period is for durable storage."""
    full_for(monkeypatch, "reserve")
    state = State()
    session, _ = session_of(store, state)
    began = time.monotonic()
    session.take_last(state, {"step": 4})
    assert not session.wait_until_safe(4)
    assert time.monotonic() - began < 5


def test_an_optimizer_with_more_state_than_was_expected_gets_its_room(store):
    """It was not there before the first step."""
    state = State(100)
    session, _ = session_of(store, state)
    until_ready(session)
    state.weight = torch.ones(5000)
    assert boundary(session, state, 1)
    assert store.scan()[0][0].header.size == 20_000


def test_the_native_engine_behind_the_common_interface(store):
    """What is saved comes back in the next life, with what was said of it."""

    def engine_of(state):
        return Native(state, Alone(), Reporter(0, 100), store, Flash())

    state = State()
    engine = engine_of(state)
    assert engine.load() is None
    until_ready(engine._session)
    for step in range(1, 4):
        state.weight.fill_(step)
        assert engine.save(step, {"position": 8 * step}).put_off == ""
    engine.wait(5.0)
    engine.close()
    again = State()
    assert engine_of(again).load() == Restored(3, {"position": 24, "step": 3})
    assert torch.equal(again.weight, torch.full((1000,), 3.0))
