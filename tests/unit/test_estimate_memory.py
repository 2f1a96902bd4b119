"""Memory of an accelerator: against published formulas, DeepSpeed's own estimators, and common sense."""

import dataclasses

import pytest
from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs
from hypothesis import given
from hypothesis import strategies as st

from llmtrain_operator.estimate import activations
from llmtrain_operator.estimate.layout import Layout
from llmtrain_operator.estimate.memory import memory, states
from llmtrain_operator.estimate.shape import shape_of
from tests.support.planner import spec

LLAMA = shape_of(spec(model={"preset": "llama-8b"}), 128_256)
SMALL = shape_of(spec(model={"preset": "gpt-small"}))
GB = 1e9


def plan(**fields) -> Layout:
    """Eight replicas in bf16."""
    values = {
        "nodes": 1, "per_node": 8, "data": 8, "tensor": 1, "pipeline": 1, "stage": 2, "offload": "none",
        "recompute": "none", "micro_batch": 1, "micro_steps": 4, "global_batch": 32, "length": 4096, "element": 2,
        "moments": 2,
    }  # fmt: skip
    return Layout(**(values | fields))


@pytest.mark.parametrize("shape", [LLAMA, SMALL], ids=["8B", "small"])
@pytest.mark.parametrize(("per_node", "nodes"), [(1, 1), (2, 1), (8, 1), (8, 8), (8, 64)])
def test_zero_2_agrees_with_deepspeed(shape, per_node, nodes):
    """Within 10 %, on accelerators and with the optimizer offloaded."""
    data = per_node * nodes
    on, off = (
        estimate_zero2_model_states_mem_needs(shape.parameters, per_node, nodes, cpu_offload=offload)[1]
        for offload in (False, True)
    )
    assert states(shape, plan(stage=2, data=data)) == pytest.approx(on, rel=0.1)
    assert states(shape, plan(stage=2, data=data, offload="optimizer")) == pytest.approx(off, rel=0.1)


@pytest.mark.parametrize(("per_node", "nodes"), [(2, 1), (8, 1), (8, 8), (8, 64)])
@pytest.mark.parametrize("offload", ["none", "optimizer", "parameters"])
def test_zero_3_agrees_with_deepspeed(per_node, nodes, offload):
    """Within 10 %; its largest layer is the largest module, which here is the embedding."""
    there, host = offload != "none", offload == "parameters"
    claimed = estimate_zero3_model_states_mem_needs(
        LLAMA.parameters, LLAMA.embedding, per_node, nodes, cpu_offload=there, cpu_offload_params=host
    )[1]
    data = per_node * nodes
    assert states(LLAMA, plan(stage=3, data=data, offload=offload)) == pytest.approx(claimed, rel=0.1)


@pytest.mark.parametrize(
    ("recompute", "sequence_parallel", "tensor", "gigabytes"),
    [
        ("none", False, 1, 2048 * 12288 * (34 + 5 * 96 * 2048 / 12288) / GB),
        ("none", False, 8, 2048 * 12288 * (10 + 24 / 8 + 5 * 96 * 2048 / 12288 / 8) / GB),
        ("none", True, 8, 2048 * 12288 / 8 * (34 + 5 * 96 * 2048 / 12288) / GB),
        ("selective", True, 8, 2048 * 12288 / 8 * 34 / GB),
        ("full", False, 8, 2048 * 12288 * 2 / GB),
    ],
)
def test_activations_by_the_published_formula(recompute, sequence_parallel, tensor, gigabytes):
    """Table 2 of Korthikanti et al. for a layer of GPT-3: 96 heads, width 12288, 2048 tokens; 5as/h is 80 there."""
    found = activations.published(12288, 96, 2048, 1, tensor, recompute, sequence_parallel=sequence_parallel)
    assert found / GB == pytest.approx(gigabytes)
    assert 5 * 96 * 2048 / 12288 == 80


def test_selective_recomputation_saves_what_the_paper_says():
    """70 % of GPT-3's activations, 65 % of MT-NLG's (section 5)."""
    for hidden, heads, saved in ((12288, 96, 0.70), (20480, 128, 0.65)):
        whole, part = (
            activations.published(hidden, heads, 2048, 1, 8, kind, sequence_parallel=True)
            for kind in ("none", "selective")
        )
        assert 1 - part / whole == pytest.approx(saved, abs=0.01)


@given(
    stage=st.integers(0, 3), data=st.integers(1, 512), element=st.sampled_from([2, 4]),
    micro_batch=st.integers(1, 8), micro_steps=st.integers(1, 8),
)  # fmt: skip
def test_no_way_of_saving_memory_costs_memory(stage, data, element, micro_batch, micro_steps):
    """More replicas, a higher stage, offloading, full recomputation, a smaller micro-batch: never more."""
    given_plan = plan(stage=stage, data=data, element=element, micro_batch=micro_batch, micro_steps=micro_steps)
    whole = memory(LLAMA, given_plan).peak
    saving = [{"data": 2 * data}, {"recompute": "full"}, {"micro_batch": max(1, micro_batch - 1)}]
    if stage:
        saving.append({"offload": "optimizer"})
    if data == 1 and stage == 3:
        saving = saving[1:]  # with a second replica weights begin to be gathered
    for change in saving:
        assert memory(LLAMA, dataclasses.replace(given_plan, **change)).peak <= whole


def test_the_peak_is_no_less_than_any_part_that_lasts():
    """And the moment that it is at is told."""
    found = memory(LLAMA, plan())
    assert found.peak >= found.weights + found.optimizer + found.activations
    assert found.moment == "the backward pass begins"
    assert memory(SMALL, plan(length=16, data=1), 1).moment == "the optimizer works"


def test_a_pipeline_holds_as_many_micro_batches_as_it_has_stages():
    """So that activations stay, while weights are shared."""
    one, four = memory(LLAMA, plan(stage=1)), memory(LLAMA, plan(stage=1, data=2, pipeline=4, micro_steps=16))
    assert four.activations == one.activations
    assert four.weights < one.weights / 3


def test_host_memory_is_taken_when_touched_and_an_accelerators_is_not():
    """A reduce bucket of half a billion numbers is there at once, or as far as it is touched."""
    whole, touched = memory(SMALL, plan()), memory(SMALL, plan(), on_host=True)
    assert (whole.buffers, touched.buffers) == (1e9, 2 * SMALL.parameters)


def test_the_key_value_cache():
    """llama-8b: 128 KiB per token in 16 bits."""
    assert activations.kv_cache(LLAMA, 1) == 128 * 1024
