"""FLOPs, time and cost."""

import pytest

from llmtrain_operator.contract.accelerators import find
from llmtrain_operator.estimate import compute, pace
from llmtrain_operator.estimate.layout import Layout
from llmtrain_operator.estimate.shape import shape_of
from tests.support.planner import spec

A100 = find("A100 80GB")


@pytest.mark.parametrize(
    ("recompute", "tera_flops", "days"), [("none", 312, 2.67), ("full", 68, 16.4)], ids=["6ND at the peak", "8ND"]
)
def test_the_time_of_a_known_run(recompute, tera_flops, days):
    """82e9 parameters, 150e9 tokens, 1,024 A100: 16.4 days by this, 13.4 were reported."""
    flops = compute.training_flops(82e9, 150e9, recompute)
    assert compute.seconds(flops, 1024, tera_flops * 1e12) / compute.DAY == pytest.approx(days, rel=0.003)


@pytest.mark.parametrize(("tera_flops", "doubted"), [(114.9, True), (115, False), (160, False)])
def test_a_rate_that_is_too_low_to_be_right_is_told(tera_flops, doubted):
    """On an A100 less than 115 TFLOP/s; of others nobody knows."""
    assert bool(compute.misconfigured(A100, tera_flops * 1e12)) is doubted
    assert compute.misconfigured(find("H100"), 1e12) == ""


@pytest.mark.parametrize(("recompute", "again"), [("none", 0), ("selective", 4 * 4 * 128 * 64), ("full", None)])
def test_what_is_computed_again_counts_as_work_of_the_hardware_only(recompute, again):
    """Selective: the attention core's forward pass; full: the whole one."""
    tiny = shape_of(spec())
    assert tiny.active == 4 * (4 * 128 * 128 + 3 * 128 * 352) + 257 * 128
    cost = compute.per_token(tiny, 64, recompute)
    assert cost.model == 6 * tiny.active + 12 * 4 * 128 * 64
    assert cost.attention == 12 * 4 * 128 * 64
    if recompute == "full":
        again = cost.model / 3
    assert cost.hardware - cost.model == pytest.approx(again)


def plan(**fields) -> Layout:
    """Eight replicas of one accelerator each."""
    values = {
        "nodes": 8, "per_node": 1, "data": 8, "tensor": 1, "pipeline": 1, "stage": 2, "offload": "none",
        "recompute": "none", "micro_batch": 1, "micro_steps": 4, "global_batch": 32, "length": 64, "element": 2,
        "moments": 2,
    }  # fmt: skip
    return Layout(**(values | fields))


@pytest.mark.parametrize(
    ("fields", "factor"),
    [
        ({}, 1),
        ({"global_batch": 25}, 32 / 25),
        ({"data": 4, "pipeline": 2, "micro_steps": 8}, 9 / 8),
        ({"data": 4, "tensor": 2, "micro_steps": 8}, 1),
    ],
    ids=["even", "padding", "bubble", "tensor"],
)
def test_a_step_is_longer_by_padding_and_bubble(fields, factor):
    """The batch's tokens over all accelerators, times what stands idle."""
    cost = compute.Flops(1e9, 1e9, 0.0)
    changed = plan(**fields)
    ideal = changed.global_batch * 64 * 1e9 / (8 * 1e12)
    assert pace.step_seconds(changed, cost, 1e12) == pytest.approx(ideal * factor)


@pytest.mark.parametrize(
    ("options", "tera_flops", "mfu"),
    [({}, 124.8, 0.3), ({"mfu": 0.3}, 124.8, 0.3), ({"tera_flops": 156.0}, 156, 0.375)],
    ids=["assumed", "by MFU", "by TFLOP/s"],
)
def test_mfu_leaves_recomputation_out(options, tera_flops, mfu):
    """8 FLOPs done for 6 that count."""
    found = pace.rate(A100, compute.Flops(6.0, 8.0, 0.0), **options)
    assert found.hardware / 1e12 == pytest.approx(tera_flops)
    assert found.mfu == pytest.approx(mfu)


def test_the_price_is_of_all_accelerators():
    """Eight of them for two hours at three."""
    assert pace.price(plan(), 7200, 3.0) == pytest.approx(48)
