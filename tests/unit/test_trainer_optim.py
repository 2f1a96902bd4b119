"""Learning-rate schedules and parameter groups."""

from __future__ import annotations

import pytest
import torch

from llmtrain_trainer import optim
from llmtrain_trainer.config import Optimizer, Schedule


@pytest.mark.parametrize(
    ("kind", "rates"),
    [
        pytest.param("constant", {0: 0.25, 3: 1.0, 4: 1.0, 104: 1.0}, id="constant"),
        pytest.param("linear", {0: 0.25, 3: 1.0, 4: 1.0, 54: 0.55, 104: 0.1}, id="linear"),
        pytest.param("cosine", {0: 0.25, 3: 1.0, 4: 1.0, 29: 0.868198, 54: 0.55, 104: 0.1}, id="cosine"),
    ],
)
def test_schedule_warms_up_and_ends_on_its_floor(kind, rates):
    """Peak 1, warm-up over 4 of 105 steps, floor 0.1 at the last step."""
    schedule = Schedule(type=kind, warmup_steps=4, min_lr_ratio=0.1)
    for step, rate in rates.items():
        assert optim.learning_rate(step, 1.0, schedule, 105) == pytest.approx(rate, rel=1e-5)


def test_a_run_shorter_than_its_warm_up_has_a_rate():
    """One step, no division by zero."""
    assert optim.learning_rate(0, 1.0, Schedule(warmup_steps=0), 1) == 1.0
    assert optim.learning_rate(0, 1.0, Schedule(warmup_steps=10), 1) == pytest.approx(0.1)


@pytest.mark.parametrize(("kind", "made"), [("AdamW", torch.optim.AdamW), ("SGD", torch.optim.SGD)])
def test_only_matrices_are_decayed(kind, made):
    """Norms and biases are left alone; frozen parameters belong to no group."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2), torch.nn.Linear(2, 2, bias=False))
    model[2].weight.requires_grad_(False)
    optimizer = optim.build_optimizer(model, Optimizer(type=kind, weight_decay=0.3, momentum=0.5))
    assert type(optimizer) is made
    groups = {group["weight_decay"]: [p.numel() for p in group["params"]] for group in optimizer.param_groups}
    assert groups == {0.3: [6], 0.0: [2, 2, 2]}
    optim.set_learning_rate(optimizer, 0.125)
    assert {group["lr"] for group in optimizer.param_groups} == {0.125}
