"""Storage that goes away in the middle of reading costs patience, not a restart."""

import pytest
import torch

from llmtrain_operator.contract import names
from llmtrain_trainer.checkpoint import opening
from llmtrain_trainer.checkpoint.opening import Opening
from llmtrain_trainer.checkpoint.storage import StorageError
from llmtrain_trainer.checkpoint.teller import Teller
from llmtrain_trainer.distributed import Worker
from llmtrain_trainer.errors import TrainerError
from llmtrain_trainer.progress import Reporter

AWAY = StorageError(names.REASON_STORAGE_UNREACHABLE, "s3://b/model: cannot read model.safetensors")
OTHER = TrainerError(names.REASON_CHECKPOINT_MISMATCH, "spec.checkpoint.restoreFrom: not a model of this job's shape")


class Flaky:
    """A model whose reading ends as `ends` says, one after the other; `told` is what the worker said before each."""

    def __init__(self, reporter, ends):
        self.reporter, self.ends, self.told = reporter, list(ends), []

    def load_weights(self, _):
        said = self.reporter.progress.checkpoints
        self.told.append(said.error if said else "")
        if (end := self.ends.pop(0)) is not None:
            raise end


def test_weights_are_read_again_until_the_storage_gives_them(monkeypatch):
    """What is wrong is told meanwhile, and taken back; another error is not waited out."""
    monkeypatch.setattr(opening, "FIRST_RETRY", 0.01)
    reporter = Reporter(0, 10)
    opened = Opening(Worker(0, 1, torch.device("cpu")), Teller(reporter, speaks=True))
    source = Flaky(reporter, [AWAY, AWAY, None, OTHER])
    opened.load_weights(torch.nn.Linear(1, 1), source)
    assert source.told == ["", str(AWAY), str(AWAY)]
    assert reporter.progress.checkpoints.error == ""
    with pytest.raises(TrainerError, match="not a model"):
        opened.load_weights(torch.nn.Linear(1, 1), source)
