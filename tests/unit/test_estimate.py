"""How large a job's state is, and how much memory its snapshots take."""

import pytest

from llmtrain_operator import estimate
from llmtrain_operator.api import JobSpec
from llmtrain_operator.contract.presets import PRESETS
from llmtrain_trainer import config, models
from llmtrain_trainer.data.tokenizers import ByteTokenizer

MIB = 2**20


def spec(**changes):
    fields = {"nodes": {"min": 2, "max": 2}, "model": {"preset": "gpt-tiny"}, "data": {"source": "/d"}}
    return JobSpec.model_validate(fields | {"training": {"maxSteps": 1}} | changes)


def built(model):
    parsed = config.Config(config.from_dict(config.Model, model, "model"), config.Data("/d"), config.Training(1))
    return sum(weight.numel() for weight in models.build_model(parsed, ByteTokenizer()).parameters())


@pytest.mark.parametrize(
    "model",
    [
        {"preset": "gpt-tiny"},
        {"preset": "gpt-mini"},
        {"architecture": {"hiddenSize": 64, "layers": 3, "heads": 4, "kvHeads": 2, "tieEmbeddings": False}},
    ],
    ids=["tiny", "mini", "architecture"],
)
def test_the_number_of_parameters_is_that_of_the_model(model):
    """Exactly: a store that is too small would be an error, one that is too large costs money."""
    assert estimate.parameters(spec(model=model)) == built(model)


def test_a_hugging_face_config_is_not_underestimated():
    """An upper bound will do, and is not twice as much."""
    given = {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 1000, "n_positions": 256}
    found = estimate.parameters(spec(model={"config": given}))
    assert built({"config": given}) <= found <= 2 * built({"config": given})


def test_what_nobody_can_know_is_not_guessed():
    """A pretrained model is only known when it is there."""
    assert estimate.flash_bytes(spec(model={"pretrained": "org/model"})) is None


@pytest.mark.parametrize(
    ("changes", "slots"),
    [
        ({}, 3 + 3),
        ({"checkpoint": {"flash": {"replicas": 0}}}, 3),
        ({"checkpoint": {"durable": {"storage": "file:///c"}}}, 4 + 3),
        ({"checkpoint": {"flash": {"replicas": 2}}}, 3 + 3),
        ({"nodes": {"min": 4, "max": 4}, "checkpoint": {"flash": {"replicas": 2}}}, (3 + 6) / 2),
        ({"nodes": {"min": 1, "max": 4}}, 6),
    ],
    ids=["one-copy", "no-copies", "durable", "as-many-as-there-are-others", "two-copies", "elastic"],
)
def test_each_pod_has_room_for_its_slots_and_its_buddies(changes, slots):
    """For the size of round that takes most, with a little for heads and checksums."""
    job = spec(**changes)
    half = estimate.state_bytes(job) / 2
    found = estimate.flash_bytes(job)
    assert slots * half <= found <= 1.05 * slots * half + 66 * MIB
    assert found % MIB == 0


@pytest.mark.parametrize(("optimizer", "each"), [({}, 12), ({"type": "SGD"}, 4), ({"type": "SGD", "momentum": 0.9}, 8)])
def test_the_optimizer_counts(optimizer, each):
    """fp32 weights, and as many moments as it keeps."""
    job = spec(training={"maxSteps": 1, "optimizer": optimizer})
    assert estimate.state_bytes(job) == each * estimate.parameters(job)


def test_all_presets_are_known():
    """Up to seventy billion."""
    sizes = {name: estimate.parameters(spec(model={"preset": name})) for name in PRESETS}
    assert sizes["llama-70b"] > 65e9
    assert 6.9e9 < sizes["llama-8b"] < 8e9
