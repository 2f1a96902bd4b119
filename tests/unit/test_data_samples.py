"""Windows of the token file and the micro-batches made of them."""

from __future__ import annotations

import numpy as np
import pytest

from llmtrain_trainer.data import IGNORED_LABEL, batches, validation_batches
from llmtrain_trainer.data.samples import split
from llmtrain_trainer.elastic_data import BatchPlan, SampleOrder


@pytest.mark.parametrize(
    ("tokens", "fraction", "train", "validation"),
    [
        pytest.param(401, 0.01, 99, 1, id="a hundredth"),
        pytest.param(401, 0.0, 100, 0, id="none wanted"),
        pytest.param(9, 0.001, 1, 1, id="at least one"),
        pytest.param(9, 0.99, 1, 1, id="one is left to train on"),
        pytest.param(5, 0.5, 1, 0, id="a single sample trains"),
        pytest.param(4, 0.5, 0, 0, id="too little for a sample and its label"),
        pytest.param(0, 0.5, 0, 0, id="nothing"),
    ],
)
def test_the_last_fraction_validates(tokens, fraction, train, validation):
    """Whole samples are split, of sequence length 4 here."""
    parts = split(np.arange(tokens, dtype=np.uint16), 4, fraction)
    assert (len(parts[0]), len(parts[1])) == (train, validation)


def test_samples_tile_the_corpus_with_one_token_of_overlap():
    """Every token but the first is predicted exactly once over training and validation together."""
    train, validation = split(np.arange(43, dtype=np.uint16), 4, 0.3)
    windows = [*(train[i] for i in range(len(train))), *(validation[i] for i in range(len(validation)))]
    assert all(window.dtype == np.int64 and window.shape == (5,) for window in windows)
    assert np.concatenate([window[1:] for window in windows]).tolist() == list(range(1, 41))
    with pytest.raises(IndexError, match="of 7"):
        train[len(train)]


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_any_world_size_trains_on_the_same_labels(world_size):
    """The union of the ranks' labels at a step is that of one process; padding is input 0 and the ignored label."""
    train, _ = split(np.arange(1, 202, dtype=np.uint16), 4, 0.0)
    order = SampleOrder(5, len(train))
    seen: list[int] = []
    for rank in range(world_size):
        plan = BatchPlan(5, world_size, micro_batch=2)
        step, micro_batches = next(batches(train, plan, order, rank, start_step=3))
        assert step == 3
        assert len(micro_batches) == plan.micro_steps
        for micro in micro_batches:
            assert micro.inputs.shape == micro.labels.shape == (plan.micro_batch, 4)
            real = micro.labels != IGNORED_LABEL
            assert micro.tokens == real.sum()
            assert (micro.labels[real] == micro.inputs[real] + 1).all()
            assert not micro.inputs[~real].any()
            seen += micro.labels[real].tolist()
    expected = [token for index in order.indices(range(15, 20)).tolist() for token in train[index][1:].tolist()]
    assert sorted(seen) == sorted(expected)


@pytest.mark.parametrize(("max_batches", "samples"), [(100, 10), (2, 8)], ids=["one whole pass", "cut short"])
def test_validation_is_one_pass_with_a_padded_end(max_batches, samples):
    """Each sample is seen once, in order, and all ranks see the same number of batches."""
    _, validation = split(np.arange(81, dtype=np.uint16), 4, 0.5)
    plan = BatchPlan(4, 3)
    per_rank = [list(validation_batches(validation, plan, rank, max_batches)) for rank in range(3)]
    assert len({len(steps) for steps in per_rank}) == 1
    assert sum(micro.tokens for steps in per_rank for _, row in steps for micro in row) == samples * 4


def test_an_order_over_other_data_is_refused():
    """An order made for another number of samples would skip or overrun."""
    train, _ = split(np.arange(81, dtype=np.uint16), 4, 0.0)
    with pytest.raises(ValueError, match="over 19 samples, the data has 20"):
        next(batches(train, BatchPlan(1, 1), SampleOrder(1, 19), 0))
