"""A job that cannot fit is told so, once, and goes on all the same."""

import pytest

from llmtrain_operator.api import JobStatus
from llmtrain_operator.conditions import find
from llmtrain_operator.state import Observed
from tests.support.planner import condition, pod, step

GPU = {"min": 2, "max": 2, "acceleratorResource": "nvidia.com/gpu"}
WIDE = {
    "nodes": {"min": 1, "max": 8},
    "training": {"maxSteps": 1, "globalBatchSize": 256, "microBatchSize": 256},
    "data": {"source": "/d", "sequenceLength": 16},
}
BIG = {"nodes": GPU, "model": {"preset": "llama-8b"}, "deepspeed": {"stage": 3}}


def limited(memory):
    """A template that limits the trainer's memory."""
    return {"spec": {"containers": [{"name": "trainer", "resources": {"limits": {"memory": memory}}}]}}


def on(product):
    """A template that asks for an accelerator by name."""
    return {"spec": {"nodeSelector": {"nvidia.com/gpu.product": product}}}


def look(status=None, memory=None, **fields):
    """One pass over two running pods on a node."""
    seen = Observed((pod(0), pod(1)), {}, True, accelerator_memory={"n1": memory} if memory else {})
    return step(status or JobStatus(), seen, **fields)


@pytest.mark.parametrize(
    ("fields", "memory", "expected", "says"),
    [
        ({"template": limited("300Mi")}, None, ("False", "MemoryLimitTooSmall"), "raise limits.memory"),
        ({"template": limited("4Gi")}, None, ("True", "Fits"), "its template limits it to 4.0 GiB"),
        (BIG | {"template": on("NVIDIA-A100-SXM4-40GB")}, None, ("False", "AcceleratorTooSmall"), "A100's 37.3 GiB"),
        (BIG | {"template": on("NVIDIA-H200")}, None, ("True", "Fits"), "H200"),
        (BIG, 16 * 2**30, ("False", "AcceleratorTooSmall"), "its accelerator's 16.0 GiB: try"),
        (BIG | {"template": limited("20Gi")}, None, ("False", "MemoryLimitTooSmall"), "raise limits.memory"),
        (WIDE | {"template": limited("460Mi")}, None, ("True", "FitsUnlessFewer"), "with only nodes.min (1) members"),
    ],
    ids=["limit", "room", "product", "large product", "node label", "loading", "fewer"],
)
def test_what_can_be_compared_is(fields, memory, expected, says):
    """The template's limit, the accelerator that it names, or the one that the nodes' labels tell of."""
    decided = look(memory=memory, **fields)
    assert condition(decided.status, "Fits") == expected
    assert says in find(decided.status.conditions, "Fits").message
    assert [event.reason for event in decided.events if event.reason == "DoesNotFit"] == (
        ["DoesNotFit"] if expected[0] == "False" else []
    )


@pytest.mark.parametrize(
    "fields",
    [{}, BIG, {"model": {"pretrained": "org/m"}, "template": limited("1Mi")}, {"entrypoint": {"script": "a.py"}}],
    ids=["no limit", "unknown accelerator", "pretrained", "script"],
)
def test_nothing_is_said_where_nothing_is_known(fields):
    """No condition is better than a guess."""
    assert find(look(**fields).status.conditions, "Fits") is None


def test_a_tokenizer_that_nobody_knows_is_given_the_benefit_of_the_doubt():
    """Its vocabulary may be small: only what cannot fit in any case is called so."""
    data = {"source": "/d", "tokenizer": "org/tokenizer"}
    decided = look(data=data, template=limited("1Gi"))
    assert condition(decided.status, "Fits")[0] == "True"


def test_it_is_told_once_and_holds_nothing_up():
    """The next pass has no event, and pods are made as ever."""
    fields = {"template": limited("300Mi")}
    first = look(**fields)
    again = look(first.status, **fields)
    assert again.events == ()
    without = look()
    assert first.actions == without.actions


def test_it_is_taken_back_when_nothing_is_known_any_more():
    """The limit was removed."""
    first = look(template=limited("300Mi"))
    assert condition(look(first.status).status, "Fits") == ("Unknown", "NothingKnown")
