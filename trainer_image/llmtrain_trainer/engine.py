"""DeepSpeed's engine around the job's model."""

from __future__ import annotations

from typing import Any

import torch

from llmtrain_trainer import optim
from llmtrain_trainer.config import Config
from llmtrain_trainer.deepspeed_config import deepspeed_config
from llmtrain_trainer.distributed import Worker


def start_engine(config: Config, model: torch.nn.Module, worker: Worker) -> Any:
    """The engine, ready for its first step. Collective."""
    import deepspeed

    torch.manual_seed(config.training.seed + worker.rank)  # dropout differs between ranks
    optimizer = optim.build_optimizer(model, config.training.optimizer)
    settings = deepspeed_config(config, worker.world_size)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings, dist_init_required=False)
    if config.deepspeed.stage == 0:
        # In half precision DeepSpeed takes an empty step here to allocate the state, which Adam's bias correction
        # would count: first updates a quarter too small. Its weight decay has to be undone too.
        engine.basic_optimizer.state.clear()
        if config.training.precision != "fp32":
            engine.optimizer.refresh_fp32_params()
    return engine
