"""The trainer's view of a job's spec."""

from __future__ import annotations

import json

import pytest

from llmtrain_operator.contract import names
from llmtrain_trainer.config import Architecture, local_path, parse
from llmtrain_trainer.errors import ConfigError

SPEC = {"model": {"preset": "gpt-tiny"}, "data": {"source": "/data"}, "training": {"maxSteps": 10}}


def changed(section, **fields):
    """SPEC with fields of one section replaced."""
    return SPEC | {section: SPEC.get(section, {}) | fields}


def test_the_shortest_spec_gets_defaults():
    """Model, data and maxSteps are enough."""
    config = parse(json.dumps(SPEC))
    assert config.training.global_batch_size == 8
    assert config.training.optimizer.betas == (0.9, 0.95)
    assert config.deepspeed.stage == 2


def test_unknown_fields_and_nulls_are_ignored():
    """An operator one minor newer can drive this image, and null stands for the default."""
    config = parse(json.dumps(changed("training", microBatchSize=None, fromTheFuture=1) | {"nodes": {"min": 2}}))
    assert config.training.micro_batch_size is None
    assert config.training.max_steps == 10


def test_free_form_parts_keep_their_keys():
    """DeepSpeed's and Hugging Face's own keys are not ours to rename."""
    model = {"model": {"config": {"model_type": "llama", "hiddenAct": 1}}}
    config = parse(json.dumps(SPEC | model | {"deepspeed": {"config": {"comms_logger": {"enabled": True}}}}))
    assert config.model.config == {"model_type": "llama", "hiddenAct": 1}
    assert config.deepspeed.config == {"comms_logger": {"enabled": True}}


def test_camel_case_reaches_nested_records():
    """Keys are those of the CRD."""
    shape = {"hiddenSize": 64, "layers": 2, "heads": 4, "ropeTheta": 500}
    config = parse(json.dumps(SPEC | {"model": {"architecture": shape}}))
    assert config.model.architecture == Architecture(hidden_size=64, layers=2, heads=4, rope_theta=500.0)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        pytest.param({}, "spec.model: missing", id="missing-section"),
        pytest.param(SPEC | {"training": {}}, "spec.training.maxSteps: missing", id="missing-field"),
        pytest.param(changed("training", maxSteps="10"), "spec.training.maxSteps: '10' is not", id="wrong-type"),
        pytest.param(changed("training", maxSteps=True), "spec.training.maxSteps: True is not", id="bool-is-no-count"),
        pytest.param(changed("training", globalBatchSize=0), "globalBatchSize: 0 is less than 1", id="too-small"),
        pytest.param(changed("training", precision="fp8"), "precision: 'fp8' is none of fp32", id="not-a-choice"),
        pytest.param(changed("training", optimizer=3), "optimizer: 3 is not an object", id="not-an-object"),
        pytest.param(changed("data", include=["*.py", 3]), r"include\[1\]: 3 is not", id="list-item"),
        pytest.param(changed("model", pretrained="/m"), "preset and pretrained given", id="two-models"),
        pytest.param(SPEC | {"model": {}}, "spec.model: none given", id="no-model"),
    ],
)
def test_a_bad_field_is_named_as_the_user_wrote_it(spec, words):
    """The message begins with the path of the CRD."""
    with pytest.raises(ConfigError, match=words) as caught:
        parse(json.dumps(spec))
    assert caught.value.reason == "InvalidConfig"


def test_the_digest_tells_specs_apart_and_ignores_key_order():
    """It goes into the exported model."""
    first = parse(json.dumps(SPEC)).digest
    assert parse(json.dumps(dict(reversed(SPEC.items())))).digest == first
    assert parse(json.dumps(changed("training", seed=1))).digest != first


def test_volumes_may_lie_elsewhere(monkeypatch):
    """Without a cluster nothing is mounted: the environment says where the directories of claims are."""
    assert local_path("pvc://models/a", "spec.output") == "/llmtrain/volumes/models/a"
    monkeypatch.setenv(names.ENV_VOLUMES, "/cache")
    assert local_path("pvc://models/a", "spec.output") == "/cache/models/a"


@pytest.mark.parametrize(
    ("text", "seconds"), [("10m", 600.0), ("1h30m", 5400.0), ("1.5s", 1.5), ("250ms", 0.25), ("1m30s", 90.0)]
)
def test_durations_are_read(text, seconds):
    """As the CRD writes them."""
    config = parse(json.dumps(changed("checkpoint", durable={"storage": "s3://b/p", "every": text, "everySteps": 5})))
    assert config.checkpoint.durable.every == seconds
    assert (config.checkpoint.durable.every_steps, config.checkpoint.durable.keep) == (5, 3)


@pytest.mark.parametrize("text", ["10", "m", "10 m", "ten", 10])
def test_what_is_no_duration_is_named(text):
    """With an example."""
    with pytest.raises(ConfigError, match=r"spec\.checkpoint\.durable\.every: .* such as 30s"):
        parse(json.dumps(changed("checkpoint", durable={"storage": "s3://b/p", "every": text})))


def test_durable_may_be_left_to_choose_its_interval_and_be_held_back():
    """`auto`, and a limit to what a worker writes in a second."""
    durable = {"storage": "file:///c", "every": "auto", "bandwidth": "1.5Mi"}
    found = parse(json.dumps(SPEC | {"checkpoint": {"durable": durable}})).checkpoint.durable
    assert (found.interval, found.bandwidth) == (None, 3 * 2**19)
    for wrong in ("fast", "0", "1Xi", 7):
        with pytest.raises(ConfigError, match=r"spec\.checkpoint\.durable\.bandwidth: "):
            parse(json.dumps(SPEC | {"checkpoint": {"durable": durable | {"bandwidth": wrong}}}))


@pytest.mark.parametrize("every", ["often", 0, -1, 1.5])
def test_steps_between_snapshots_are_a_number_or_auto(every):
    """Anything else is an error that names the field."""
    with pytest.raises(ConfigError, match=r"spec\.checkpoint\.flash\.everySteps"):
        parse(json.dumps(SPEC | {"checkpoint": {"flash": {"everySteps": every}}}))
