"""What the model's config tells of a checkpoint that shapes do not."""

import json

import pytest

from llmtrain_operator.contract import names
from llmtrain_trainer.checkpoint import exporting, likeness
from llmtrain_trainer.config import Architecture, Config, Data, Model, Training
from llmtrain_trainer.data.tokenizers import load_tokenizer
from llmtrain_trainer.errors import TrainerError
from llmtrain_trainer.models import build_model


def described(sequence_length=16, **changes):
    architecture = Architecture(**{"hidden_size": 32, "layers": 1, "heads": 4, **changes})
    config = Config(Model(architecture=architecture), Data("/text", sequence_length=sequence_length), Training(1))
    model = build_model(config, load_tokenizer("byte"))
    shapes = {name: list(weight.shape) for name, weight in model.named_parameters()}
    return json.loads(json.dumps(exporting.describe(model, "byte"))), shapes


def test_the_same_shapes_in_other_heads_are_another_model():
    """Every matrix fits, and training would go on from noise."""
    (stored, there), (here, shapes) = described(), described(heads=2)
    assert there == shapes
    with pytest.raises(TrainerError, match="num_attention_heads was 4, is 2") as caught:
        likeness.check(stored, here)
    assert caught.value.reason == names.REASON_CHECKPOINT_MISMATCH


def test_other_differences_are_told_and_those_that_follow_the_job_are_not():
    """A rope may be changed on purpose; a sequence length is no part of the weights."""
    (stored, _), (here, _) = described(), described(sequence_length=32, rope_theta=5e5)
    (told,) = likeness.check(stored, here)
    assert told.startswith("rope_parameters was {")
    assert likeness.check(stored, described(sequence_length=32)[0]) == ()


def test_a_checkpoint_that_does_not_describe_its_model_differs_in_nothing():
    """Its shapes have been compared all the same."""
    assert likeness.check(None, described()[0]) == ()
