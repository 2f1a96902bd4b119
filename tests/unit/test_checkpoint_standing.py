import dataclasses
import json

import pytest

from llmtrain_trainer.checkpoint.standing import Standing
from llmtrain_trainer.config import parse
from llmtrain_trainer.elastic_data import BatchPlan, Course, SampleOrder
from llmtrain_trainer.errors import TrainerError

SPEC = {"model": {"preset": "gpt-tiny"}, "data": {"source": "/data"}, "training": {"maxSteps": 10}}


def test_a_standing_survives_its_manifest():
    """Through JSON and back, with fields of a later version ignored."""
    standing = dataclasses.replace(
        Standing.begin(parse(json.dumps(SPEC)), "digest"),
        step=7,
        position=56,
        loss=2.5,
        skipped_in_a_row=3,
        recent_losses=(2.5, 2.25),
    )
    assert Standing.from_json(json.loads(json.dumps(standing.to_json() | {"later": 1}))) == standing


@pytest.mark.parametrize("raw", [None, {}, {"step": "seven"}])
def test_a_manifest_without_one_is_refused_by_name(raw):
    """Another writer's checkpoint is not trained on."""
    with pytest.raises(TrainerError, match="does not say where training stood") as error:
        Standing.from_json(raw)
    assert error.value.reason == "CheckpointMismatch"


def test_a_job_that_would_train_nothing_is_refused_by_name():
    """Steps count on from the checkpoint of `restoreFrom`: done before it began is hardly what was meant."""
    standing = dataclasses.replace(Standing.begin(parse(json.dumps(SPEC)), "digest"), step=10)
    standing.check_steps_left(11)
    with pytest.raises(TrainerError, match=r"spec.training.maxSteps: 10 is not more than the 10 steps") as error:
        standing.check_steps_left(10)
    assert error.value.reason == "InvalidConfig"


def test_another_order_of_samples_is_told():
    """Each field that makes the order is compared; others may change."""
    stored = Standing.begin(parse(json.dumps(SPEC)), "a" * 64)
    longer = {"data": {"source": "/data", "sequenceLength": 128}, "training": {"maxSteps": 20, "seed": 1}}
    here = Standing.begin(parse(json.dumps(SPEC | longer)), "b" * 64)
    assert stored.other_order(here) == (
        "training.seed was 42, is 1",
        "data.sequenceLength was 256, is 128",
        "the text's digest was aaaaaaaaaaaa, is bbbbbbbbbbbb",
    )
    assert stored.other_order(stored) == ()


def test_a_new_batch_size_goes_on_with_the_next_sample():
    """After 5 steps of 8, batches of 12 begin at sample 40, in the same order."""
    whole = SampleOrder(3, 100)
    order = SampleOrder(3, 100, course=Course.begin(5 * 12, 40))
    plan = BatchPlan(12, 1, 12)
    (first,), (second,) = plan.samples(5, 0), plan.samples(6, 0)
    assert [order[at] for at in first + second] == [whole[at] for at in range(40, 64)]
    assert order.epoch(5 * 12) == whole.epoch(40)
