"""Optimizer and learning-rate schedule.

The schedule is a function of the step alone: nothing of it has to be saved or restored. torch's own optimizers are
used on every device, because DeepSpeed's fused ones are compiled when first used (minutes, and a compiler).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

from llmtrain_trainer.config import Optimizer, Schedule


def learning_rate(step: int, peak: float, schedule: Schedule, max_steps: int) -> float:
    """The rate of 0-based `step`: linear warm-up to `peak`, then the schedule down to its floor at the last step."""
    if step < schedule.warmup_steps:
        return peak * (step + 1) / schedule.warmup_steps
    decay_steps = max(1, max_steps - 1 - schedule.warmup_steps)
    done = min(1.0, (step - schedule.warmup_steps) / decay_steps)
    remaining = {"constant": 1.0, "linear": 1.0 - done, "cosine": (1.0 + math.cos(math.pi * done)) / 2}[schedule.type]
    return peak * (schedule.min_lr_ratio + (1.0 - schedule.min_lr_ratio) * remaining)


def set_learning_rate(optimizer: Any, rate: float) -> None:
    """Use `rate` from the next step on. `optimizer` is a torch optimizer or DeepSpeed's wrapper around one."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def build_optimizer(model: torch.nn.Module, config: Optimizer) -> torch.optim.Optimizer:
    """The optimizer over `model`'s trainable parameters; vectors (norms, biases) are not decayed."""
    groups = _groups((p for p in model.parameters() if p.requires_grad), config.weight_decay)
    if config.type == "SGD":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps)


def _groups(parameters: Iterable[torch.nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    everything = list(parameters)
    matrices = [p for p in everything if p.dim() >= 2]
    vectors = [p for p in everything if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
