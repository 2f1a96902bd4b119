"""How busy the accelerator is: model FLOPs utilisation (MFU), as PaLM defines it (Chowdhery et al., 2022, appendix B).

FLOPs per token are 6 per matrix parameter plus 12 * layers * width * sequence length for attention; recomputation by
activation checkpointing does not count. The peak is the data sheet's dense bf16/fp16 figure. Limit: an accelerator
that the table does not name, a CPU, or fp32 training has no MFU (None) rather than a guessed one.
"""

from __future__ import annotations

from typing import Any

import torch

from llmtrain_operator.contract import accelerators
from llmtrain_trainer.config import Config
from llmtrain_trainer.distributed import Worker


class Speed:
    """A run's speed from the seconds of its steps. Make it before DeepSpeed shards the model."""

    def __init__(self, model: torch.nn.Module, config: Config, worker: Worker) -> None:
        self.tokens = config.training.global_batch_size * config.data.sequence_length
        self._flops = self.tokens * flops_per_token(model, config.data.sequence_length) / worker.world_size
        self._peak = peak_flops(worker.device, config.training.precision)

    def of(self, seconds: float) -> dict[str, float | None]:
        """`tokens_per_second` and `mfu` of a step that took `seconds`."""
        mfu = self._flops / seconds / self._peak if self._peak else None
        return {"tokens_per_second": self.tokens / seconds, "mfu": mfu}


def flops_per_token(model: torch.nn.Module, sequence_length: int) -> float:
    """Forward and backward FLOPs for one token. Call it before DeepSpeed shards the model."""
    config: Any = model.config
    embedding = model.get_input_embeddings().weight  # type: ignore[operator]  # a Hugging Face model's method
    matrices = sum(p.numel() for p in model.parameters() if p.dim() >= 2)
    if not getattr(config, "tie_word_embeddings", False):
        matrices -= embedding.numel()  # a look-up; a tied one is the output projection too
    layers, width = getattr(config, "num_hidden_layers", 0), getattr(config, "hidden_size", 0)
    return 6.0 * matrices + 12.0 * layers * width * sequence_length


def peak_flops(device: torch.device, precision: str) -> float | None:
    """The peak FLOP/s of one accelerator, None if it is not known."""
    if device.type != "cuda" or precision == "fp32":
        return None
    known = accelerators.find(torch.cuda.get_device_name(device))
    return known.peak if known else None
