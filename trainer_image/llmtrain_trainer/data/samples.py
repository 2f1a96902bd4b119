"""From the token file to the micro-batches of a rank."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from llmtrain_trainer.elastic_data import BatchPlan, SampleOrder

IGNORED_LABEL: Final = -100
"""The label of padding: torch's cross_entropy leaves it out by default."""


@dataclass(frozen=True, slots=True)
class Samples:
    """Windows `first` to `first + count` of the token file; each overlaps the next by the one token to predict."""

    tokens: npt.NDArray[Any]
    sequence_length: int
    first: int
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> npt.NDArray[np.int64]:
        """Token ids, shape (sequence_length + 1,)."""
        if not 0 <= index < self.count:
            raise IndexError(f"sample {index} of {self.count}")
        start = (self.first + index) * self.sequence_length
        return self.tokens[start : start + self.sequence_length + 1].astype(np.int64)


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Model input of one micro-step, both of shape (micro_batch, sequence_length).

    `labels[i, t]` is the token that follows `inputs[i, t]`: already shifted, unlike what transformers' `labels`
    argument expects. Padding has input 0 and label -100. `tokens` counts the labels that are not padding; it may be 0,
    so sum the losses and weigh them with `BatchPlan.loss_scale`.
    """

    inputs: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    tokens: int


def split(tokens: npt.NDArray[Any], sequence_length: int, validation_fraction: float) -> tuple[Samples, Samples]:
    """Training and validation samples: the last fraction of the corpus validates.

    A fraction above 0 gives at least one validation sample where there are two; at least one is left for training.
    """
    total = max(0, (len(tokens) - 1) // sequence_length)
    held_out = 0
    if validation_fraction > 0 and total > 1:
        held_out = min(max(1, round(total * validation_fraction)), total - 1)
    train = Samples(tokens, sequence_length, 0, total - held_out)
    return train, Samples(tokens, sequence_length, total - held_out, held_out)


def batches(
    samples: Samples, plan: BatchPlan, order: SampleOrder, rank: int, start_step: int = 0
) -> Iterator[tuple[int, tuple[MicroBatch, ...]]]:
    """A rank's micro-batches of every step from `start_step` on, without end."""
    if order.total != len(samples):
        raise ValueError(f"the order is over {order.total} samples, the data has {len(samples)}")
    for step in count(start_step):
        yield step, _assemble(samples, plan.samples(step, rank), order)


def validation_batches(
    samples: Samples, plan: BatchPlan, rank: int, max_batches: int
) -> Iterator[tuple[int, tuple[MicroBatch, ...]]]:
    """A rank's part of one pass in the corpus's order, at most `max_batches` global batches.

    All ranks get the same number; what the last global batch lacks is padding.
    """
    total = len(samples)
    if total == 0:
        return
    order = SampleOrder(seed=0, total=total, shuffle=False)
    for step in range(min(max_batches, -(-total // plan.global_batch))):
        places = [[at if at is not None and at < total else None for at in row] for row in plan.samples(step, rank)]
        yield step, _assemble(samples, places, order)


def _assemble(samples: Samples, places: Sequence[Sequence[int | None]], order: SampleOrder) -> tuple[MicroBatch, ...]:
    positions = [at for row in places for at in row if at is not None]
    indices = iter(order.indices(positions).tolist())
    return tuple(_micro_batch(samples, [None if at is None else next(indices) for at in row]) for row in places)


def _micro_batch(samples: Samples, indices: Sequence[int | None]) -> MicroBatch:
    inputs = np.zeros((len(indices), samples.sequence_length), dtype=np.int64)
    labels = np.full_like(inputs, IGNORED_LABEL)
    for row, index in enumerate(indices):
        if index is not None:
            ids = samples[index]
            inputs[row], labels[row] = ids[:-1], ids[1:]
    real = sum(index is not None for index in indices)
    return MicroBatch(inputs, labels, real * samples.sequence_length)
