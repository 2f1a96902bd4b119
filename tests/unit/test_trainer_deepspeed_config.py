"""Job spec to DeepSpeed config."""

from __future__ import annotations

import json

import pytest

from llmtrain_trainer.config import parse
from llmtrain_trainer.deepspeed_config import MANAGED, batch_plan, deepspeed_config


def config(training=None, deepspeed=None):
    """A config of global batch 24 with changes."""
    spec = {"model": {"preset": "gpt-tiny"}, "data": {"source": "/data"}}
    spec["training"] = {"maxSteps": 10, "globalBatchSize": 24, **(training or {})}
    return parse(json.dumps(spec | {"deepspeed": deepspeed or {}}))


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 7, 24, 30])
@pytest.mark.parametrize("micro_batch", [None, 1, 3])
def test_batch_and_accumulation_follow_the_world_size(world_size, micro_batch):
    """DeepSpeed's numbers hold the whole global batch at any world size, and the bound on memory is kept."""
    job = config({"microBatchSize": micro_batch})
    result = deepspeed_config(job, world_size)
    micro, steps = result["train_micro_batch_size_per_gpu"], result["gradient_accumulation_steps"]
    assert micro * steps * world_size >= 24
    assert micro <= (micro_batch or 8)
    assert (micro, steps) == (batch_plan(job, world_size).micro_batch, batch_plan(job, world_size).micro_steps)
    assert "train_batch_size" not in result


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_precision_enables_one_format_and_keeps_its_settings(precision):
    """The other format's block does not reach DeepSpeed."""
    given = {"fp16": {"initial_scale_power": 12, "enabled": False}}
    result = deepspeed_config(config({"precision": precision}, {"config": given}), 2)
    assert [key for key in ("bf16", "fp16") if key in result] == [key for key in (precision,) if key != "fp32"]
    if precision == "fp16":
        assert result["fp16"] == {"initial_scale_power": 12, "enabled": True}


def test_stage_and_offload_join_the_users_zero_settings():
    """Typed fields win, everything else in the block stays."""
    given = {"zero_optimization": {"stage": 0, "reduce_bucket_size": 5, "offload_optimizer": {"pin_memory": True}}}
    result = deepspeed_config(config(deepspeed={"stage": 3, "offloadOptimizer": "cpu", "config": given}), 2)
    assert result["zero_optimization"] == {
        "stage": 3,
        "reduce_bucket_size": 5,
        "offload_optimizer": {"pin_memory": True, "device": "cpu"},
    }


def test_unmanaged_keys_pass_and_managed_ones_do_not():
    """`deepspeed.config` is passed through untouched but for what the typed fields decide."""
    given = {"comms_logger": {"enabled": True}, "steps_per_print": 7} | dict.fromkeys(MANAGED, "theirs")
    given |= {"bf16": {}, "fp16": {}}
    result = deepspeed_config(config(deepspeed={"config": given}), 2)
    assert result["comms_logger"] == {"enabled": True}
    assert result["steps_per_print"] == 7
    assert "theirs" not in result.values()
    assert config(deepspeed={"config": given}).deepspeed.config == given
