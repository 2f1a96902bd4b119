"""Keepers of two ranks, each in a thread of its own: real files, a real store, a state of a few numbers."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue

import pytest
import torch
from torch.distributed import TCPStore

from llmtrain_operator.contract import names
from llmtrain_trainer.checkpoint.cadence import Votes
from llmtrain_trainer.checkpoint.catalog import Catalog
from llmtrain_trainer.checkpoint.keeper import Keeper
from llmtrain_trainer.checkpoint.pieces import Piece
from llmtrain_trainer.checkpoint.standing import Standing
from llmtrain_trainer.checkpoint.storage import StorageError, open_storage
from llmtrain_trainer.config import Checkpoint, Config, Data, Durable, Flash, Model, Training
from llmtrain_trainer.flash.session import Session
from llmtrain_trainer.flash.slot import StoreFull
from llmtrain_trainer.flash.store import Store
from llmtrain_trainer.progress import Reporter
from llmtrain_trainer.signals import Wishes


@dataclass
class Worker:
    """What a keeper needs of the process group, for two threads."""

    rank: int
    told: SimpleQueue
    world_size: int = 2

    @property
    def is_first(self):
        return self.rank == 0

    @property
    def device(self):
        return torch.device("cpu")

    def from_first(self, value):
        if self.is_first:
            self.told.put(value)
            return value
        return self.told.get(timeout=30)


class State:
    """Of one rank."""

    def __init__(self, rank):
        self._pieces = [Piece("weight", "master", 8 * rank, torch.arange(8.0))]

    def pieces(self):
        return self._pieces

    def scalars(self):
        return {}

    def rng(self):
        return {}


def standing(step):
    return Standing(step, 8 * step, 1, True, 16, "text", "spec")


@pytest.fixture(params=[""])
def keepers(tmp_path, monkeypatch, request):
    """Of a plain torchrun, or of the round that is the parameter; the agent of the second has been there for longer."""
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    monkeypatch.setenv(names.ENV_JOB_UID, "job-a")
    if request.param:
        monkeypatch.setenv(names.ENV_ROUND, request.param)
    durable = Durable(f"file://{tmp_path}/c", every_steps=1)
    config = Config(Model("tiny"), Data("/text"), Training(100), checkpoint=Checkpoint(durable=durable))
    told, made = SimpleQueue(), []
    for rank in range(2):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(3 * rank))
        keeper = Keeper(config, Worker(rank, told), Reporter(rank, 100), Wishes())
        keeper._state = State(rank)
        made.append(keeper)
    yield made
    del store  # it serves until here


def together(keepers, do):
    """`do(keeper)` of all ranks at once."""
    with ThreadPoolExecutor(len(keepers)) as pool:
        return list(pool.map(do, keepers, timeout=30))


@pytest.mark.parametrize("keepers", ["", "3"], indirect=True)
def test_workers_of_a_new_agent_and_of_an_old_one_meet(keepers, tmp_path):
    """torch counts fewer restarts in one that came later, so they are no name for a meeting."""
    together(keepers, lambda keeper: keeper.settle(Votes(stop=1), lambda: standing(3)))
    assert Catalog(open_storage(f"file://{tmp_path}/c")).newest_valid()[0].step == 3


def test_all_ranks_leave_alike_though_one_has_not_heard_that_the_save_is_committed(keepers, tmp_path):
    """One that thought otherwise would begin a save that nobody joins, or go on training alone."""
    deaf = keepers[1]._saver._accord

    def outcome(n, own_seconds):
        raise StorageError(names.REASON_STORAGE_UNREACHABLE, "rank 0 did not say how the checkpoint ended")

    deaf.outcome = outcome
    leave = Votes(leave=1)
    assert together(keepers, lambda keeper: keeper.settle(leave, lambda: standing(3))) == [True, True]
    assert [keeper._saver._count for keeper in keepers] == [1, 1]
    assert Catalog(open_storage(f"file://{tmp_path}/c")).newest_valid()[0].step == 3


def test_a_save_that_ends_during_the_vote_is_noted_before_the_next_begins(keepers):
    """Else it would not count: neither as the newest, nor as a failure, nor as the fence that ends this round."""
    first, second = keepers
    due = Votes(due=1)
    first.settle(due, lambda: standing(1))  # and waits for the shard of rank 1
    take = first._saver.take

    def take_just_before_the_end():
        taken = take()
        second.settle(due, lambda: standing(1))
        first._saver.wait()
        return taken

    first._saver.take = take_just_before_the_end
    assert first.votes(2).writing
    first._saver.take = take
    assert not first.votes(3).writing
    assert first._history.has(1)
    second._saver.wait()


def test_without_memory_for_snapshots_checkpoints_are_saved_all_the_same(keepers, tmp_path):
    """One worker that has none makes all of them save from a copy of the usual kind; until that is known they wait."""
    for keeper in keepers:
        root = tmp_path / f"store-{keeper._worker.rank}"
        root.mkdir()
        keeper._session = Session(Flash(), keeper._worker, keeper._reporter, Store(root, "job-a"), 1)

    def settle(step):
        votes = Votes.of([sum(pair) for pair in zip(*(keeper.votes(step).values() for keeper in keepers), strict=True)])
        together(keepers, lambda keeper: keeper.settle(votes, lambda: standing(step)))
        return votes

    votes = settle(1)
    assert (votes.due, votes.unready, votes.troubled) == (1, 2, 0)
    assert [keeper._saver._count for keeper in keepers] == [0, 0]
    keepers[1]._session.snapshots._rooms.trouble = StoreFull(5)
    assert settle(2).troubled == 1
    for keeper in keepers:
        keeper._saver.wait()
    assert Catalog(open_storage(f"file://{tmp_path}/c")).newest_valid()[0].step == 2
