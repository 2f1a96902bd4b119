"""The training objective and the validation loss."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import cross_entropy

from llmtrain_trainer import data
from llmtrain_trainer.distributed import Worker
from llmtrain_trainer.elastic_data import BatchPlan


def summed_loss(model: Any, batch: data.MicroBatch, device: torch.device) -> torch.Tensor:
    """Cross-entropy in nats, summed over the batch's labels, in fp32. 0 for a batch of padding only."""
    inputs, labels = (torch.from_numpy(array).to(device) for array in (batch.inputs, batch.labels))
    logits = model(input_ids=inputs, use_cache=False).logits
    return cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), ignore_index=data.IGNORED_LABEL, reduction="sum"
    )


def validation_loss(
    engine: Any, samples: data.Samples, plan: BatchPlan, worker: Worker, max_batches: int
) -> float | None:
    """Mean loss per token over the first `max_batches` global batches of `samples`, None without samples. Collective.

    Every worker runs the same number of forward passes (ZeRO-3 gathers weights in each) and the mean is over tokens,
    so the result does not depend on the world size.
    """
    loss = torch.zeros((), dtype=torch.float64, device=worker.device)
    tokens = 0
    engine.eval()
    with torch.no_grad():
        for _, micro_batches in data.validation_batches(samples, plan, worker.rank, max_batches):
            for batch in micro_batches:
                loss += summed_loss(engine, batch, worker.device)
                tokens += batch.tokens
    engine.train()
    loss_sum, token_sum = worker.sums(loss, tokens)
    return loss_sum / token_sum if token_sum else None
