"""Job spec to DeepSpeed config. Pure.

Guarantee: `deepspeed.config` reaches DeepSpeed untouched but for the keys in `MANAGED`, which follow the typed
fields and the world size. Limits: data parallelism only; the optimizer and the learning-rate schedule are the
trainer's own (a client optimizer needs no compiler at run time), so the blocks of that name are managed too.
"""

from __future__ import annotations

from typing import Any, Final

from llmtrain_trainer.config import Config
from llmtrain_trainer.elastic_data import BatchPlan

MANAGED: Final = {
    "train_batch_size": "training.globalBatchSize",
    "train_micro_batch_size_per_gpu": "training.microBatchSize",
    "gradient_accumulation_steps": "training.globalBatchSize",
    "gradient_clipping": "training.gradientClipping",
    "fp16": "training.precision",
    "bf16": "training.precision",
    "gradient_allreduce_op": "training.globalBatchSize",
    "managed_gradient_accumulation": "training.globalBatchSize",
    "optimizer": "training.optimizer",
    "scheduler": "training.schedule",
}
"""Top-level DeepSpeed keys that a typed field of the spec decides. `fp16` and `bf16` keep their other settings."""

_DEFAULTS: Final[dict[str, Any]] = {
    "steps_per_print": 1_000_000_000,  # the loop prints its own lines
    "zero_allow_untested_optimizer": True,  # SGD; DeepSpeed knows nothing against it
    "zero_force_ds_cpu_optimizer": False,  # offload with torch's AdamW: DeepSpeed's own is compiled at run time
}


def batch_plan(config: Config, world_size: int) -> BatchPlan:
    """How this job's constant global batch is split over `world_size` workers."""
    return BatchPlan(config.training.global_batch_size, world_size, config.training.micro_batch_size)


def deepspeed_config(config: Config, world_size: int) -> dict[str, Any]:
    """The dictionary for `deepspeed.initialize`.

    DeepSpeed's own train_batch_size (micro x accumulation x world) counts padding and may exceed the global batch,
    so it is left for DeepSpeed to derive; the loss is weighted by the real tokens (`BatchPlan.loss_scale`).
    """
    given = config.deepspeed.config
    plan = batch_plan(config, world_size)
    passed_through = {key: value for key, value in given.items() if key not in MANAGED}
    return {
        **_DEFAULTS,
        **passed_through,
        "train_micro_batch_size_per_gpu": plan.micro_batch,
        "gradient_accumulation_steps": plan.micro_steps,
        "gradient_clipping": config.training.gradient_clipping,
        **_precision(config),
        "zero_optimization": _zero(config),
    }


def _precision(config: Config) -> dict[str, Any]:
    return {
        key: {**config.deepspeed.config.get(key, {}), "enabled": True}
        for key in ("bf16", "fp16")
        if key == config.training.precision
    }


def _zero(config: Config) -> dict[str, Any]:
    zero = {**config.deepspeed.config.get("zero_optimization", {}), "stage": config.deepspeed.stage}
    if config.deepspeed.offload_optimizer == "cpu":
        zero["offload_optimizer"] = {**zero.get("offload_optimizer", {}), "device": "cpu"}
    return zero
