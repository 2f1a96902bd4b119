"""Savers of two ranks in one process: real files, a real store, real threads."""

import torch
from torch.distributed import HashStore

from llmtrain_trainer.checkpoint.accord import Accord
from llmtrain_trainer.checkpoint.catalog import Catalog
from llmtrain_trainer.checkpoint.pieces import WEIGHTS, Piece
from llmtrain_trainer.checkpoint.saver import Saver, Writer
from llmtrain_trainer.checkpoint.staging import Staging
from llmtrain_trainer.checkpoint.storage import open_storage


class Rank:
    """One worker: its part of one parameter, so many frozen numbers, and its saver."""

    def __init__(self, rank, store, uri, round_number=1, patience=30.0, frozen=0):
        self.rank = rank
        self.frozen = torch.arange(float(frozen)) + rank
        self.state = torch.arange(10.0) + 100 * rank
        self.catalog = Catalog(open_storage(uri))
        self.outcomes = []
        accord = Accord(store, rank, 2, patience)
        writer = Writer(rank, 2, "job-a", round_number, keep=2)
        self.saver = Saver(self.catalog, accord, writer, Staging(torch.device("cpu")), self.outcomes.append)

    def begin(self, step):
        pieces = [Piece("weight", "master", 10 * self.rank, self.state)]
        if len(self.frozen):
            pieces.append(Piece("backbone", WEIGHTS, len(self.frozen) * self.rank, self.frozen))
        return self.saver.begin(step, pieces, {"torch": f"rng-{self.rank}"}, {"step": step})

    def end(self):
        self.saver.wait()
        assert self.outcomes[-1:] == [self.saver.take()]
        return self.outcomes[-1]


def two_ranks(path, patience=30.0, round_number=1, frozen=0):
    store = HashStore()
    return [Rank(rank, store, f"file://{path}", round_number, patience, frozen) for rank in range(2)]


def save(ranks, step):
    for rank in ranks:
        rank.begin(step)
    return [rank.end() for rank in ranks]
