"""The models: defaults, spelling, and what they tolerate."""

import pytest
from pydantic import ValidationError

from llmtrain_operator.api import JobSpec, JobStatus
from llmtrain_operator.contract.presets import PRESETS
from tests.support.specs import GOOD


def test_the_shortest_job_has_a_default_for_everything():
    """Model, data and maxSteps are enough; the rest is filled in, also in the JSON that members receive."""
    spec = JobSpec.model_validate(GOOD)
    assert (spec.nodes.min, spec.nodes.maximum, spec.training.optimizer.lr, spec.deepspeed.stage) == (1, 1, 3e-4, 2)
    dumped = spec.model_dump(mode="json", by_alias=True)
    assert dumped["training"]["schedule"]["minLrRatio"] == 0.1
    assert JobSpec.model_validate(dumped) == spec


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_can_be_named(preset):
    """The API knows all presets that the trainer knows."""
    assert JobSpec.model_validate({**GOOD, "model": {"preset": preset}}).model.preset == preset


def test_a_spec_cannot_be_changed_in_place():
    """Records are frozen, so that a decision cannot alter what it was made from."""
    with pytest.raises(ValidationError, match="frozen"):
        JobSpec.model_validate(GOOD).suspend = True


def test_status_of_a_newer_operator_is_read():
    """Unknown status fields are dropped: after a downgrade the older operator must be able to go on."""
    status = JobStatus.model_validate({"state": "Running", "novelty": 1, "progress": {"step": 3, "other": 2}})
    assert (status.state, status.progress.step) == ("Running", 3)


def test_status_is_camel_case_on_the_wire():
    """What the operator writes is what the CRD describes."""
    dumped = JobStatus(best_step=7).model_dump(by_alias=True, exclude_none=True)
    assert dumped["bestStep"] == 7
    assert "round" not in dumped
