"""The first guess at a step's time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtrain_operator.estimate.prior import prior, step_seconds
from tests.support.planner import spec


def job(**fields):
    """An elastic job of up to 64 members."""
    training = {"maxSteps": 100, "globalBatchSize": 64, "microBatchSize": 1} | fields.pop("training", {})
    return spec(nodes={"min": 1, "max": 64} | fields.pop("nodes", {}), training=training, **fields)


@given(st.integers(1, 63))
def test_computation_never_grows_with_members_and_the_exchange_does(members):
    """So that the policy sees what a member more brings and what it costs."""
    less, more = prior(job(), members), prior(job(), members + 1)
    assert more.compute <= less.compute
    assert more.exchange >= less.exchange


def test_the_global_batch_makes_stairs():
    """64 sequences on 33 members take two turns, as on 32."""
    assert prior(job(), 33).compute == prior(job(), 63).compute == prior(job(), 32).compute
    assert prior(job(), 64).compute == prior(job(), 32).compute / 2


@pytest.mark.parametrize(
    ("fields", "factor", "says"),
    [
        ({}, 10, "1 CPU cores"),
        ({"nodes": {"acceleratorResource": "nvidia.com/gpu"}}, 10, "unknown accelerator"),
        ({"template": {"spec": {"nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-L4"}}}}, 3, "L4 at 40%"),
        (
            {"template": {"spec": {"containers": [{"name": "trainer", "resources": {"limits": {"cpu": "1500m"}}}]}}},
            10,
            "1.5 CPU cores",
        ),
    ],
    ids=["nothing known", "a resource", "a product", "cores"],
)
def test_it_says_what_it_rests_on(fields, factor, says):
    """And by which factor it may be wrong."""
    found = prior(job(**fields), 2)
    assert found.factor == factor
    assert says in found.reason
    assert step_seconds(job(**fields), 2) == found.seconds == found.compute + found.exchange + found.fixed


@pytest.mark.parametrize(
    "fields",
    [
        {"model": {"pretrained": "org/m"}},
        {"entrypoint": {"script": "a.py"}},
        {"model": {"config": {"model_type": "x"}}},
    ],
    ids=["pretrained", "script", "config without a width"],
)
def test_what_nobody_can_know_is_not_guessed(fields):
    """The policy then waits for what is measured."""
    assert step_seconds(job(**fields), 2) is None


def test_recomputation_costs_a_third_more():
    """Of computation; the exchange is the same."""
    plain, again = prior(job(), 4), prior(job(training={"activationCheckpointing": True}), 4)
    assert again.compute == pytest.approx(plain.compute * 4 / 3)
    assert again.exchange == plain.exchange
