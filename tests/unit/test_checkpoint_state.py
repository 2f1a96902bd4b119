"""The parts of an engine's state that need no process group: optimizer state, generators, views."""

from __future__ import annotations

import json
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from llmtrain_trainer.checkpoint import optimizer_state, rng
from llmtrain_trainer.checkpoint.flats import Flat, Range, flattened
from llmtrain_trainer.checkpoint.state import check_supported
from llmtrain_trainer.errors import ConfigError, TrainerError


def flats_of(optimizer):
    """One flat per parameter, as at stage 0."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    return [
        Flat(weight, optimizer, (f"p{i}",), (Range(f"p{i}", 0, weight.numel(), 0),)) for i, weight in enumerate(weights)
    ]


def stepped(kind, updated=(True, True), **settings):
    """An optimizer over two parameters after two steps; only the `updated` ones had gradients."""
    weights = [torch.nn.Parameter(torch.ones(3, 2)), torch.nn.Parameter(torch.ones(5))]
    optimizer = kind(weights, lr=0.1, **settings)
    for _ in range(2):
        for weight, has_gradient in zip(weights, updated, strict=True):
            weight.grad = torch.full_like(weight, 0.5) if has_gradient else None
        optimizer.step()
    return optimizer


def described(optimizer):
    """What is stored, after a way through JSON."""
    return json.loads(json.dumps(optimizer_state.describe(flats_of(optimizer))))


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (torch.optim.AdamW, {}),
        (torch.optim.AdamW, {"amsgrad": True}),
        (torch.optim.SGD, {"momentum": 0.9}),
        (torch.optim.SGD, {}),
        (torch.optim.RMSprop, {"centered": True}),
        (torch.optim.Adagrad, {}),
    ],
    ids=str,
)
def test_a_fresh_optimizer_gets_the_state_of_any_other_of_its_kind(kind, settings):
    """Kinds, types and shapes of tensors, and numbers, are those that torch made itself."""
    old = stepped(kind, **settings)
    new = kind([torch.nn.Parameter(torch.zeros(3, 2)), torch.nn.Parameter(torch.zeros(5))], lr=0.1, **settings)
    optimizer_state.prepare(flats_of(new), described(old))
    for before, after in zip(flats_of(old), flats_of(new), strict=True):
        known = {name: value for name, value in before.state.items() if value is not None}
        assert known.keys() == after.state.keys()
        for name, value in known.items():
            assert (after.state[name].shape, after.state[name].dtype) == (value.shape, value.dtype)
            assert name != "step" or after.state[name].item() == value.item() == 2


def test_state_that_the_checkpoint_lacks_is_removed():
    """A checkpoint from before the first step makes a used optimizer as good as new."""
    old, used = torch.optim.AdamW([torch.nn.Parameter(torch.ones(3, 2))]), stepped(torch.optim.AdamW)
    optimizer_state.prepare(flats_of(used), described(old))
    assert not used.state


def test_what_was_never_updated_has_zeros_and_a_count_of_its_own():
    """A parameter without gradients so far is saved like one that is to begin."""
    old = stepped(torch.optim.AdamW, updated=(True, False))
    stored = described(old)
    assert stored["numbers"]["step"] == {"dtype": "float32", "value": 2, "others": {"p1": 0}}
    moments = dict(optimizer_state.tensor_states(flats_of(old), flats_of(old)))["exp_avg"]
    assert [bool(tensor.any()) for _, tensor in moments] == [True, False]
    new = stepped(torch.optim.AdamW)
    optimizer_state.prepare(flats_of(new), stored)
    assert [flat.state["step"].item() for flat in flats_of(new)] == [2, 0]


def test_different_step_counts_do_not_become_one():
    """Where several parameters share a count, a checkpoint in which they differ is refused, and nothing is changed."""
    stored = described(stepped(torch.optim.AdamW, updated=(True, False)))
    weight = torch.nn.Parameter(torch.ones(11))
    new = torch.optim.AdamW([weight])
    together = Flat(weight, new, ("p0", "p1"), (Range("p0", 0, 6, 0), Range("p1", 0, 5, 6)))
    with pytest.raises(TrainerError, match=r"spec.deepspeed.stage: the optimizer's step .* is 2 for p0, 0 for p1"):
        optimizer_state.prepare([together], stored)
    assert not new.state


def test_state_that_is_not_per_weight_is_refused_at_once():
    """Adafactor's rows and columns cannot be cut where the weights are cut."""
    with pytest.raises(ConfigError, match=r"Adafactor keeps a state 'row_var' of p0 that is not one"):
        described(stepped(torch.optim.Adafactor))


def test_another_optimizers_state_is_refused():
    """The error names the field and both optimizers."""
    new = torch.optim.SGD([torch.nn.Parameter(torch.ones(3, 2)), torch.nn.Parameter(torch.ones(5))])
    with pytest.raises(TrainerError, match=r"spec.training.optimizer.type: .* state of AdamW, which SGD cannot use"):
        optimizer_state.prepare(flats_of(new), described(stepped(torch.optim.AdamW)))


def engine_with(optimizer=None, **engine):
    """What is asked of an engine before its state is looked at; by default all of it is supported."""
    functions = {
        "zero_optimization_stage": 3,
        "zero_quantized_nontrainable_weights": False,
        "autotp_size": 1,
        **engine,
    }
    given = {name: (lambda value=value: value) for name, value in functions.items() if name != "has_moe_layers"}
    has_moe_layers = functions.get("has_moe_layers", False)
    return SimpleNamespace(optimizer=SimpleNamespace(**optimizer or {}), has_moe_layers=has_moe_layers, **given)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"optimizer": {"swap_optimizer": True}}, "zero_optimization.offload_optimizer.device: nvme"),
        ({"optimizer": {"params_in_nvme_and_cpu": True}}, "zero_optimization.offload_param.device: nvme"),
        ({"optimizer": {"zenflow": True}}, "zero_optimization.zenflow"),
        ({"optimizer": {"fp32_groups_flat": []}}, "optimizer fused by DeepSpeed"),
        ({"zero_quantized_nontrainable_weights": True}, "zero_optimization.zero_quantized_nontrainable_weights"),
        ({"autotp_size": 2}, "tensor_parallel.autotp_size"),
        ({"has_moe_layers": True}, "mixture of experts"),
    ],
)
def test_state_that_would_be_missed_is_refused_before_training(parts, words):
    """The error names DeepSpeed's key and both ways out; without any of it there is none."""
    check_supported(engine_with())
    with pytest.raises(ConfigError, match=rf"spec.deepspeed.config: {words} at stage 3 cannot be saved"):
        check_supported(engine_with(**parts))


def test_a_view_that_cannot_be_is_refused_by_name():
    """A copy in its place would be saved or filled in vain."""
    with pytest.raises(ConfigError, match=r"spec.model: master of p is not contiguous"):
        flattened(torch.ones(3, 2).t(), "master of p")


def test_all_generators_go_on_where_they_were():
    """Python's, numpy's and torch's draws repeat after a way through JSON, the cached second normal too."""

    def draws():
        return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(3).tolist()]

    random.gauss(0, 1)
    np.random.randn()
    stored = json.loads(json.dumps(rng.describe()))
    first = draws()
    rng.load(stored)
    assert draws() == first
