"""What cannot be laid out is told by field, with what to do."""

import pytest

from llmtrain_operator.estimate.layout import Layout, Wanted, layout
from llmtrain_operator.estimate.shape import shape_of
from tests.support.planner import spec

ARCHITECTURE = {"architecture": {"hiddenSize": 96, "layers": 4, "heads": 6, "kvHeads": 2}}
EIGHT = {"min": 2, "max": 2, "procPerNode": 4}


def laid(wanted, **fields):
    """On eight workers in two members."""
    training = {"maxSteps": 1, "globalBatchSize": 16} | fields.pop("training", {})
    job = spec(**({"nodes": EIGHT, "model": ARCHITECTURE, "training": training, "deepspeed": {"stage": 1}} | fields))
    return layout(job, shape_of(job), wanted, 2)


@pytest.mark.parametrize(
    ("wanted", "fields", "path", "says", "remedy"),
    [
        (Wanted(tensor=4), {}, "--tensor-parallel", "does not divide the model's 6 heads", "divisor of 2"),
        (Wanted(nodes=3, tensor=3), {}, "--tensor-parallel", "2 key/value heads", "divisor of 2"),
        (Wanted(pipeline=8), {}, "--pipeline-parallel", "only 4 layers", "at most 4"),
        (Wanted(nodes=3, tensor=2, pipeline=4), {}, "--nodes", "divide the 12 workers", "multiple of 8 workers"),
        (Wanted(nodes=5), {}, "spec.training.globalBatchSize", "20 data-parallel replicas less", "at least 20"),
        (
            Wanted(nodes=3, tensor=2), {}, "spec.training.globalBatchSize", "6 data-parallel replicas do not divide",
            "multiple of 6",
        ),
        (Wanted(offload="parameters"), {}, "--offload", "only ZeRO 3", "--stage 3"),
        (Wanted(offload="optimizer", stage=0), {}, "--offload", "nothing to offload", "--stage 1"),
        (Wanted(pipeline=2, stage=2), {}, "--pipeline-parallel", "cannot be sharded under a pipeline", "--stage 1"),
    ],
    ids=["heads", "kv heads", "layers", "workers", "batch", "odd batch", "offload 3", "offload 0", "pipeline 2"],
)  # fmt: skip
def test_the_impossible_is_told(wanted, fields, path, says, remedy):
    """Before anyone counts on it."""
    problems = laid(wanted, **fields)
    assert [problem.path for problem in problems] == [path]
    assert says in problems[0].message
    assert remedy in problems[0].remedy


@pytest.mark.parametrize(
    ("wanted", "data", "micro"),
    [(Wanted(), 8, (2, 1)), (Wanted(tensor=2), 4, (4, 1)), (Wanted(tensor=2, pipeline=2), 2, (8, 1))],
    ids=["data", "tensor", "both"],
)
def test_the_rest_is_data_parallel(wanted, data, micro):
    """And shares the global batch."""
    plan = laid(wanted)
    assert isinstance(plan, Layout)
    assert (plan.data, plan.workers, (plan.micro_batch, plan.micro_steps)) == (data, 8, micro)


def test_what_is_asked_comes_before_the_spec():
    """Stage, recomputation, offload and the number of members."""
    plan = laid(Wanted(nodes=1, stage=3, recompute="selective", offload="parameters"))
    assert (plan.nodes, plan.stage, plan.recompute, plan.offload) == (1, 3, "selective", "parameters")
    own = laid(Wanted(), training={"activationCheckpointing": True})
    assert (own.nodes, own.stage, own.recompute, own.offload) == (2, 1, "full", "none")
